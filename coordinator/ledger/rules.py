"""The rules of decisions, pure, for every backend: what may be answered, from what is recorded.

``state`` and ``floor`` are of the transaction's session; ``recorded`` is its decision, None without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

from undoubt.coordinator.ledger.contract import TERMINATES_BY_ITSELF, BranchRecord, SessionState, Verdict
from undoubt.participants.contract import Decision

_NUMBER = attrgetter("number")


def sorted_branches(branches: Iterable[BranchRecord]) -> list[BranchRecord]:
    return sorted(branches, key=_NUMBER)


def labels(branches: Iterable[BranchRecord]) -> list[str]:
    """A list of branches as it is compared: by number and participant."""
    return [f"{branch.number}:{branch.participant}" for branch in sorted_branches(branches)]


def agrees(asked: Decision, given: Sequence[str], recorded: Decision, known: Sequence[str]) -> bool:
    """Whether ``recorded``, with the branches ``known``, answers who asks with the branches ``given``.

    ABORT is answered whatever list is given: whoever recorded it may have known only some branches, and it
    can never mislead into a commit. Who asks for ABORT may know only some.
    """
    if recorded is Decision.ABORT:
        return True
    return set(given) <= set(known) if asked is Decision.ABORT else list(given) == list(known)


def verdict_of(  # noqa: PLR0911 - one line per rule
    recorded: Decision | None, state: SessionState | None, floor: int, seq: int, protocol: str
) -> Verdict:
    """For recovery, about a transaction with a prepared branch. ``state`` is None for a session that is not
    there (any more), or has another nonce."""
    if state is None:
        return Verdict.ASK_PROTOCOL if protocol in TERMINATES_BY_ITSELF else Verdict.FORGOTTEN
    if recorded is not None:
        return Verdict.COMMITTED if recorded is Decision.COMMIT else Verdict.ABORTED
    if protocol in TERMINATES_BY_ITSELF:
        return Verdict.ASK_PROTOCOL
    if seq < floor:
        # Of a restored session too: nothing there was undecided at the backup, nor can it have been since.
        return Verdict.ABORTED
    match state:
        case SessionState.OPEN:
            return Verdict.ACTIVE
        case SessionState.RESTORED:
            return Verdict.FORGOTTEN
        case SessionState.CLOSED | SessionState.EXPIRED:
            return Verdict.ABORTED
