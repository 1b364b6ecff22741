"""What recovery tells: of one pass (:class:`Report`) and of itself (:class:`Status`). Made to become JSON."""

from __future__ import annotations

import msgspec


class ReportedBranch(msgspec.Struct, frozen=True):
    """One branch. ``standing`` is None for one that is judged by a recorded decision and not prepared.

    ``action``: ``commit``, ``rollback``, ``wait``, ``terminate``, ``report``, ``finish``, ``look_again``,
    ``heuristic``. ``result``: ``done``, ``would_do`` (dry run), ``nothing`` (not recovery's to do),
    ``look_again`` or ``failed``; ``why`` explains the last two.
    """

    gid: str
    participant: str
    standing: str | None
    action: str
    result: str
    why: str = ""


class Unfinished(msgspec.Struct, frozen=True):
    """A recorded decision that not every branch is known to have applied. ``waits_for`` names the
    participants concerned, ``unknown`` those of them that are not registered in this process."""

    txid: str
    decision: str
    waits_for: tuple[str, ...]
    unknown: tuple[str, ...]


class Report(msgspec.Struct, frozen=True):
    """One pass over all participants. ``errors`` by name of those that could not be dealt with."""

    dry_run: bool
    lines: tuple[ReportedBranch, ...]
    finished: tuple[str, ...]
    unfinished: tuple[Unfinished, ...]
    errors: dict[str, str]

    def of(self, gid: object) -> ReportedBranch | None:
        """The last line about that gid."""
        return next((line for line in reversed(self.lines) if line.gid == str(gid)), None)


class Counters(msgspec.Struct):
    """Since the service was made. ``seen_active`` counts sightings, one a branch and pass."""

    scans: int = 0
    seen_active: int = 0
    committed: int = 0
    rolled_back: int = 0
    finished: int = 0
    heuristics: int = 0
    deadlocks: int = 0


class WorkerStatus(msgspec.Struct, frozen=True):
    """One participant's worker. ``failures`` in a row; ``retry_in_s`` while it pauses after one."""

    participant: str
    failures: int
    last_error: str | None
    retry_in_s: float | None
    prepared: int
    reported: tuple[str, ...]
    """Names of prepared transactions that recovery must not touch: a person, or somebody else, decides."""


class Status(msgspec.Struct, frozen=True):
    """``running``: started and not closed; ``leads``: this process is the one to recover."""

    running: bool
    leads: bool
    participants: tuple[WorkerStatus, ...]
    unfinished: tuple[Unfinished, ...]
    counters: Counters
    last_error: str | None = None
    """The deadlock detector's, or of keeping the workers."""
