"""What a prepared branch costs while it stays: who waits for it, and for how long vacuum has been held back.

A prepared transaction keeps its locks, and every row version that died since its transaction id was assigned
(https://www.postgresql.org/docs/current/sql-prepare-transaction.html, "Notes"). The one piece of code that
``indoubt explain`` and ``doctor`` both tell this from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from undoubt.participants.contract import Participant, Waiting
from undoubt.participants.errors import ParticipantError
from undoubt.participants.ids import Gid
from undoubt.recovery.operator.survey import SurveyedBranch


@dataclass(frozen=True, slots=True)
class Burden:
    """``blocks`` are the waits of other sessions for this branch itself, not for those that wait for it;
    ``blocks_unknown`` says why they are not known. Vacuum has been held back for at least ``held_back_s``
    seconds and ``held_back_xids`` transactions, None where the participant does not count them."""

    blocks: tuple[Waiting, ...]
    blocks_unknown: str | None
    held_back_s: float
    held_back_xids: int | None


async def waits_of(participant: Participant) -> Sequence[Waiting] | ParticipantError:
    """The edges of its wait graph now, or why they are not known."""
    try:
        return await participant.waits()
    except ParticipantError as error:
        return error


def burden(found: SurveyedBranch, waits: Sequence[Waiting] | ParticipantError) -> Burden:
    """``waits`` are of the participant in whose list ``found`` stands."""
    branch = found.branch
    blocks: tuple[Waiting, ...] = ()
    unknown = str(waits) if isinstance(waits, ParticipantError) else None
    if not isinstance(waits, ParticipantError):
        names = {branch.gid, _node(found)}
        waiters = {
            (str(edge.waiter), edge.pid): edge
            for edge in waits
            if edge.holder in names and not edge.holder_pid
        }
        blocks = tuple(waiters[key] for key in sorted(waiters))
    return Burden(blocks, unknown, branch.age_s, branch.age_xids)


def _node(found: SurveyedBranch) -> str:
    """Its name in the wait graph (:class:`undoubt.participants.contract.Waiting`)."""
    gid = found.branch.gid
    if isinstance(gid, Gid) and found.standing.ours:
        return str(gid.txid)
    return f"{found.participant}/{gid}"
