"""Reads the outcome of a transaction that is not in the book: it was begun before a restart, or elsewhere.

A transaction of a sidecar never commits without a record. A transaction without a record whose session is
stored as gone is therefore aborted for ever. That is true only for marked sessions
(:mod:`undoubt.coordinator.ledger.session_mark`): a coordinator in an application may commit in one phase,
which is not recorded, and may give its sessions any name. If acceptors decide (Paxos Commit), they are asked
first: they have an outcome before the ledger has it.
"""

from __future__ import annotations

import logging

from undoubt.coordinator.errors import LedgerError, OutcomeUnknown
from undoubt.coordinator.ledger.contract import Ledger, RecordedDecision, SessionInfo, SessionState
from undoubt.coordinator.ledger.session_mark import is_marked
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId
from undoubt.serve.sidecar.types import State, TransactionShown

log = logging.getLogger(__name__)

_PREFIX = "sidecar"
_NOWHERE = "-"
"""Replaces the address in the name of a session if other sidecars cannot reach the sidecar."""


def session_name(url: str, own: str) -> str:
    """The name of a sidecar's session: a text for operators, and the address at which other sidecars reach
    the sidecar."""
    return f"{_PREFIX} {url or _NOWHERE} {own}"


def address_in(name: str) -> str:
    """The address in the name of a marked session; empty if it has none."""
    parts = name.split(" ", 2)
    return parts[1] if len(parts) == 3 and parts[0] == _PREFIX and parts[1] != _NOWHERE else ""


async def address_of(ledger: Ledger, txid: TxId) -> str:
    """The address of the sidecar that began ``txid``, from its session in the ledger; empty if that session
    is not open, is not a sidecar's, or has no address. Raises ``LedgerError``."""
    session = await _session_of(ledger, txid)
    if session is None or session.state is not SessionState.OPEN or not await is_marked(ledger, session):
        return ""
    return address_in(session.name)


async def look_up(ledger: Ledger, txid: TxId) -> TransactionShown | None:
    """The state of a transaction in the ledger. None if the ledger has nothing about the transaction, whose
    outcome is unknown then. Raises ``LedgerError``."""
    known = await ledger.transaction(txid)
    if known is not None and known.precommitted:
        return _unknown(txid, "its branches are in doubt until recovery ends it")
    if known is not None and known.record is not RecordedDecision.NOT_RECORDED:
        heuristics = {str(each.gid): str(each.kind) for each in known.heuristics}
        committed = known.record is RecordedDecision.COMMIT
        state: State = "committed" if committed else "aborted"
        return TransactionShown(
            str(txid), "heuristic" if heuristics else state, reason=known.cause, heuristics=heuristics
        )
    session = await _session_of(ledger, txid)
    if session is None or not await is_marked(ledger, session):
        return None
    return await _of_session(ledger, txid, session)


async def _of_session(ledger: Ledger, txid: TxId, session: SessionInfo) -> TransactionShown | None:
    """The state of a transaction that had no record before the marked ``session`` was read. A decision that
    was recorded before the end of the session is found now."""
    below = txid.seq < session.floor
    if session.state is SessionState.OPEN and not below:
        return _unknown(txid, "the sidecar that began it may still decide")
    if session.state is SessionState.RESTORED and not below:
        return None
    recorded = (await ledger.records([txid]))[txid]
    if recorded is not RecordedDecision.NOT_RECORDED:
        return TransactionShown(str(txid), "committed" if recorded is RecordedDecision.COMMIT else "aborted")
    if session.acceptors and not below:
        return await _settled(ledger, txid)
    return TransactionShown(str(txid), "aborted", reason="it was not decided, and its session has ended")


def _unknown(txid: TxId, why: str) -> TransactionShown:
    return TransactionShown(str(txid), "unknown", reason=why)


async def _settled(ledger: Ledger, txid: TxId) -> TransactionShown:
    """The outcome that the acceptors have chosen; they choose ABORT for a transaction without votes."""
    if ledger.acceptors is None:
        return TransactionShown(
            str(txid), "unknown", reason="the acceptors of its session are not known here"
        )
    try:
        settlement = await ledger.acceptors.settle(txid)
    except (LedgerError, OutcomeUnknown) as error:
        log.info("the acceptors do not report the outcome of %s: %s", txid, error)
        return _unknown(txid, "its acceptors do not report the outcome")
    return TransactionShown(
        str(txid),
        "committed" if settlement.decision is Decision.COMMIT else "aborted",
        reason="its acceptors have decided",
    )


async def _session_of(ledger: Ledger, txid: TxId) -> SessionInfo | None:
    for session in await ledger.sessions():
        if (session.id, session.nonce) == (txid.session, txid.nonce):
            return session
    return None
