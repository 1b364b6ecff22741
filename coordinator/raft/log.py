"""The log in memory: everything after the compacted part, the unstable tail included.

::

    before | entries ......................................................| last
           |     snapshot <= applied <= applying <= commit <= last
           |                                persisted <= handed <= last

Entries after ``handed`` were not given to storage yet; entries after ``persisted`` are not known to be
durable on this node. Both indexes decrease when a conflicting tail is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from undoubt.coordinator.raft.messages import Entry, SnapshotMeta
from undoubt.participants.invariant import InvariantViolation, invariant


class AppendResult(msgspec.Struct, frozen=True):
    """The result of an append: ``last`` is the end of the prefix that now equals the leader's log."""

    last: int
    appended: tuple[Entry, ...]
    replaced_from: int | None
    """The first index whose old entry was removed; None if none was."""


class Log:
    def __init__(self, snapshot: SnapshotMeta, entries: Sequence[Entry], applied: int) -> None:
        """Takes what was found on disk. ``entries`` may begin before the snapshot's index, but there must be
        no gap."""
        self.snapshot = snapshot
        """The newest durable snapshot. snapshot.index <= applied"""
        self.before_index, self.before_term = snapshot.index, snapshot.term
        if entries and entries[0].index <= snapshot.index:
            self.before_index, self.before_term = entries[0].index, entries[0].term
            entries = entries[1:]
        self.entries: list[Entry] = list(entries)
        self.applied = max(applied, snapshot.index)
        """The index up to which the state machine has stored the effects. applied <= applying"""
        self.applying = self.applied
        """The index up to which entries were handed out for application. applying <= commit"""
        self.commit = self.applied
        """The index up to which entries are known to be committed. commit <= last_index. It is not stored: a
        leader sends it again."""
        self.persisted = self.last_index
        self.handed = self.last_index
        for position, entry in enumerate(self.entries):
            invariant(entry.index == self.before_index + 1 + position, f"a gap in the log at {entry.index}")
            invariant(entry.intact, f"the stored entry {entry.index} does not match its checksum")
        invariant(self.matches(snapshot.index, snapshot.term), "the stored log is not the snapshot's")
        self.check()

    @property
    def first_index(self) -> int:
        return self.before_index + 1

    @property
    def last_index(self) -> int:
        return self.before_index + len(self.entries)

    @property
    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else self.before_term

    def check(self) -> None:
        if not self.snapshot.index <= self.applied <= self.applying <= self.commit <= self.last_index:
            raise InvariantViolation(
                f"not snapshot {self.snapshot.index} <= applied {self.applied} <= applying {self.applying}"
                f" <= commit {self.commit} <= last {self.last_index}"
            )
        invariant(self.before_index <= self.snapshot.index, "entries are missing that no snapshot covers")
        invariant(self.persisted <= self.handed <= self.last_index, "persisted, but never handed to storage")

    def term(self, index: int) -> int | None:
        """The term of the entry at ``index``; None if it is compacted or does not exist."""
        if index == self.before_index:
            return self.before_term
        if self.before_index < index <= self.last_index:
            return self.entries[index - self.before_index - 1].term
        return None

    def matches(self, index: int, term: int) -> bool:
        return self.term(index) == term

    def up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends with this index and term is at least as complete as this log (extended
        paper §5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def slice(self, first: int, bytes_max: int, last: int | None = None) -> tuple[Entry, ...]:
        """Return entries from ``first`` (to ``last``), at most ``bytes_max`` bytes together, but at least one
        entry."""
        if first < self.first_index:
            raise InvariantViolation(f"the entry {first} is compacted")
        start = first - self.before_index - 1
        stop = len(self.entries) if last is None else last - self.before_index
        size = 0
        for position in range(start, stop):
            size += self.entries[position].size
            if size > bytes_max and position > start:
                stop = position
                break
        return tuple(self.entries[start:stop])

    def append(self, entries: Sequence[Entry]) -> None:
        """Append a leader's own entries. A leader never replaces entries."""
        for entry in entries:
            invariant(entry.index == self.last_index + 1, "a leader's entry follows its last")
            self.entries.append(entry)

    def accept(self, prev_index: int, prev_term: int, entries: Sequence[Entry]) -> AppendResult | None:
        """Append a leader's entries as a follower; None if the log has no entry ``prev_index`` of
        ``prev_term``.

        Existing entries are removed from the first conflicting entry on, never because a message is short or
        late (extended paper §5.3, figure 2, AppendEntries 3 and 4).
        """
        if not self.matches(prev_index, prev_term):
            return None
        last = prev_index + len(entries)
        for position, entry in enumerate(entries):
            invariant(entry.index == prev_index + 1 + position, "a leader sends entries without gaps")
            if self.matches(entry.index, entry.term):
                continue
            new = tuple(entries[position:])
            replaced = entry.index if entry.index <= self.last_index else None
            if replaced is not None:
                self._truncate_from(replaced)
            self.entries.extend(new)
            return AppendResult(last, new, replaced)
        return AppendResult(last, (), None)

    def _truncate_from(self, index: int) -> None:
        invariant(index > self.commit, f"entry {index} conflicts, but {self.commit} is committed")
        del self.entries[index - self.before_index - 1 :]
        self.handed = min(self.handed, index - 1)
        self.persisted = min(self.persisted, index - 1)

    def commit_to(self, index: int) -> None:
        if index > self.last_index:
            raise InvariantViolation(f"{index} committed, but the log ends at {self.last_index}")
        self.commit = max(self.commit, index)

    def hint(self, index: int, term: int) -> int:
        """The last index up to ``index`` whose term is at most ``term`` (extended paper §5.3, end).

        A search for a common entry may skip everything after that index.
        """
        index = min(index, self.last_index)
        while (found := self.term(index)) is not None and found > term:
            index -= 1
        return index

    def restore(self, meta: SnapshotMeta) -> None:
        """Replace the whole log by another node's snapshot."""
        invariant(meta.index > self.commit, "a snapshot would remove committed entries")
        self.snapshot = meta
        self.before_index, self.before_term = meta.index, meta.term
        self.entries = []
        self.commit = self.applying = self.applied = self.persisted = self.handed = meta.index

    def compact(self, meta: SnapshotMeta, keep: int, keep_bytes: int) -> None:
        """Compact the log after the snapshot ``meta`` has become durable: of the entries that it covers, keep
        only the last ``keep``, and of these at most ``keep_bytes`` bytes together."""
        invariant(self.matches(meta.index, meta.term), "a snapshot of another log")
        invariant(
            self.snapshot.index <= meta.index <= self.applied, "a snapshot of entries that are not applied"
        )
        self.snapshot = meta
        cut = meta.index
        while cut > max(self.before_index, meta.index - keep):
            keep_bytes -= self.entries[cut - self.before_index - 1].size
            if keep_bytes < 0:
                break
            cut -= 1
        if cut <= self.before_index:
            return
        term = self.term(cut)
        invariant(term is not None, "the cut lies inside the log")
        del self.entries[: cut - self.before_index]
        self.before_index, self.before_term = cut, term or 0
