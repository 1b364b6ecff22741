"""The report of one pass (:class:`Report`) and the status of the service (:class:`Status`), both for JSON."""

from __future__ import annotations

import msgspec


class ReportedBranch(msgspec.Struct, frozen=True):
    """One branch. ``standing`` is None for a branch that is not prepared and is judged by a recorded
    decision.

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
    """A recorded decision that not all branches are known to have applied. ``waits_for`` names the
    participants of the others, ``unknown`` those of them that are not registered in this process."""

    txid: str
    decision: str
    waits_for: tuple[str, ...]
    unknown: tuple[str, ...]


class Report(msgspec.Struct, frozen=True):
    """One pass over all participants. ``errors`` has the participants whose pass failed, by name."""

    dry_run: bool
    lines: tuple[ReportedBranch, ...]
    finished: tuple[str, ...]
    unfinished: tuple[Unfinished, ...]
    errors: dict[str, str]

    def of(self, gid: object) -> ReportedBranch | None:
        """The last line about ``gid``."""
        return next((line for line in reversed(self.lines) if line.gid == str(gid)), None)


class Counters(msgspec.Struct):
    """Counts since the service was made. ``seen_active`` counts a branch once for each pass that saw it."""

    scans: int = 0
    seen_active: int = 0
    committed: int = 0
    rolled_back: int = 0
    finished: int = 0
    heuristics: int = 0
    deadlocks: int = 0


class WorkerStatus(msgspec.Struct, frozen=True):
    """One participant's worker: ``failures`` is the number of consecutive failures, ``retry_in_s`` the rest
    of the pause after a failure."""

    participant: str
    failures: int
    last_error: str | None
    retry_in_s: float | None
    prepared: int
    reported: tuple[str, ...]
    """Names of prepared transactions that recovery must not change: an operator, or their own transaction
    manager, decides."""


class Status(msgspec.Struct, frozen=True):
    """``running``: the service was started and not closed; ``leads``: this process is the one that
    recovers."""

    running: bool
    leads: bool
    participants: tuple[WorkerStatus, ...]
    unfinished: tuple[Unfinished, ...]
    counters: Counters
    last_error: str | None = None
    """The last error of the deadlock detector or of the loop that keeps the workers."""
