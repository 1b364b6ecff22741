"""Computes the configuration after a change, and finds the configuration that is in force.

A change of one voter takes one step. A change of several voters goes through a joint configuration, in which
the old and the new majority must both agree (extended paper §6; thesis §4.2, §4.3). A configuration is in
force from the moment it is *in the log*, committed or not; :class:`ConfigurationHistory` returns to an
earlier configuration when the tail of the log is replaced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from undoubt.coordinator.raft.errors import ConfigRefused
from undoubt.coordinator.raft.messages import (
    NATURAL_MAX,
    Change,
    ChangeKind,
    ConfigChange,
    ConfigTransition,
    Configuration,
    Entry,
    Kind,
    SnapshotMeta,
    decode_change,
)
from undoubt.participants.invariant import invariant


def _apply(configuration: Configuration, changes: Iterable[Change]) -> Configuration:
    """Make ``changes`` in order. In a joint configuration only ``incoming`` and the learners change."""
    incoming, outgoing = set(configuration.incoming), configuration.outgoing
    learners, learners_next = set(configuration.learners), set(configuration.learners_next)
    for change in changes:
        node = change.node
        if not 0 <= node <= NATURAL_MAX:  # otherwise no node could decode the entry
            raise ConfigRefused(f"no node can have the number {node}")
        if node == 0 or change.kind is ChangeKind.UPDATE:
            continue
        incoming.discard(node)
        learners.discard(node)
        learners_next.discard(node)
        if change.kind is ChangeKind.ADD_VOTER:
            incoming.add(node)
        elif change.kind is ChangeKind.ADD_LEARNER:
            # An outgoing voter's acknowledgements still count; it may not be a learner at the same time.
            (learners_next if node in outgoing else learners).add(node)
    if not incoming:
        raise ConfigRefused("removed all voters")
    return Configuration(
        frozenset(incoming),
        outgoing,
        frozenset(learners),
        frozenset(learners_next),
        configuration.auto_leave,
    )


def simple(configuration: Configuration, changes: Iterable[Change]) -> Configuration:
    """Return the configuration after a change of at most one voter, in one step: old and new majorities
    overlap. Raises ConfigRefused for any other change."""
    if configuration.joint:
        raise ConfigRefused("can't apply simple config change in joint config")
    new = _apply(configuration, changes)
    if len(new.incoming ^ configuration.incoming) > 1:
        raise ConfigRefused("more than one voter changed without entering joint config")
    return new


def enter_joint(
    configuration: Configuration, changes: Iterable[Change], *, auto_leave: bool
) -> Configuration:
    """Return the configuration in which both the present voters and the voters after ``changes`` must
    agree."""
    if configuration.joint:
        raise ConfigRefused("config is already joint")
    if not configuration.incoming:
        raise ConfigRefused("can't make a zero-voter config joint")
    joint = msgspec.structs.replace(configuration, outgoing=configuration.incoming, auto_leave=auto_leave)
    return _apply(joint, changes)


def leave_joint(configuration: Configuration) -> Configuration:
    """Return the configuration with only the new voters; demoted voters become learners."""
    if not configuration.joint:
        raise ConfigRefused("can't leave a non-joint config")
    return Configuration(
        incoming=configuration.incoming, learners=configuration.learners | configuration.learners_next
    )


def after(configuration: Configuration, change: ConfigChange) -> Configuration:
    """Return the configuration after ``change``; raises ConfigRefused if the change is impossible."""
    if not change.changes:
        return leave_joint(configuration)
    if change.transition is ConfigTransition.AUTO:
        new = _apply(configuration, change.changes)
        if configuration.joint or len(new.incoming ^ configuration.incoming) <= 1:
            return simple(configuration, change.changes)
    auto_leave = change.transition is not ConfigTransition.JOINT_EXPLICIT
    return enter_joint(configuration, change.changes, auto_leave=auto_leave)


class ConfigurationHistory:
    """The configurations that the log holds, oldest first: the snapshot's, and one for each change since."""

    def __init__(self, snapshot: SnapshotMeta) -> None:
        self._known: list[tuple[int, Configuration]] = []
        self._add(snapshot.index, snapshot.configuration)

    def _add(self, index: int, configuration: Configuration) -> None:
        self._known.append((index, configuration))
        self.current = configuration
        self.current_index = index
        """The index of the configuration in force. While it is uncommitted, no other change may follow."""

    def at(self, index: int) -> Configuration:
        """The configuration after the entry at ``index``."""
        for known_index, configuration in reversed(self._known):
            if known_index <= index:
                return configuration
        invariant(False, f"the configuration at {index} is compacted")
        return Configuration()

    def voters_since(self, commit: int) -> frozenset[int]:
        """The voters of the last configuration up to ``commit`` and of those after it."""
        voters = self.at(max(commit, self._known[0][0])).voters
        for index, configuration in self._known:
            if index > commit:
                voters |= configuration.voters
        return voters

    def append(self, entries: Sequence[Entry]) -> bool:
        """Process new entries of the log. Returns whether the configuration in force has changed."""
        changed = False
        for entry in entries:
            if entry.kind is Kind.CONFIG:
                change = decode_change(entry.data)
                self._add(entry.index, after(self.current, change))
                changed = True
        return changed

    def truncate_from(self, index: int) -> bool:
        """Process the removal of the log's tail from ``index`` on. Returns whether the configuration in force
        has changed."""
        count = len(self._known)
        while len(self._known) > 1 and self._known[-1][0] >= index:
            self._known.pop()
        self.current_index, self.current = self._known[-1]
        return len(self._known) < count

    def compact(self, index: int) -> None:
        """Forget the configurations that no snapshot at ``index`` or later needs."""
        while len(self._known) > 1 and self._known[1][0] <= index:
            self._known.pop(0)
