"""Translates rows of the ledger's tables into values of the contract."""

from __future__ import annotations

from typing import Any

import msgspec

from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.contract import (
    DecisionRecord,
    Heuristic,
    RecordedDecision,
    SessionInfo,
    SessionState,
    TransactionInfo,
)
from undoubt.coordinator.ledger.postgres.decisions import decode_branches
from undoubt.coordinator.ledger.rules import verdict_of
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.invariant import InvariantViolation


def decision_record(  # noqa: PLR0917 - columns, in order
    session: int,
    nonce: str,
    seq: int,
    protocol: str,
    decision: str,
    branches: str,
    at: float,
    coordinator: str,
    cause: str,
) -> DecisionRecord:
    return DecisionRecord(
        TxId(session, nonce, seq),
        Protocol(protocol),
        Decision(decision),
        decode_branches(branches),
        at,
        coordinator,
        cause,
    )


def session_info(number: int, nonce: str, name: str, state: str, floor: int, ttl_ms: int) -> SessionInfo:  # noqa: PLR0917
    return SessionInfo(number, nonce, name, SessionState(state), floor, ttl_ms / 1000)


def heuristic(  # noqa: PLR0917
    gid: str, kind: str, decision: str | None, found_at: float, note: str, forgotten: bool, by: str
) -> Heuristic:
    parsed = Gid.parse(gid)
    if not isinstance(parsed, Gid):
        raise InvariantViolation(f"the ledger contains a heuristic outcome of {gid!r}, which is not a gid")
    recorded = None if decision is None else Decision(decision)
    return Heuristic(parsed, Settled(kind), recorded, found_at, note, forgotten, by)


def transaction_info(row: tuple[Any, ...], heuristics: list[Heuristic]) -> TransactionInfo:
    """A transaction from a row of the statement ``transactions``: a decision, then state and floor of its
    session (None if the session was dropped), whether the transaction is finished, its key, and a fingerprint
    if only the decision on the transaction is known."""
    record = decision_record(*row[:9])
    state, floor, finished, key, fingerprint = row[9:]
    unknown = fingerprint is not None
    return TransactionInfo(
        record.txid,
        RecordedDecision(str(record.decision)),
        verdict_of(record.decision, _state(state), floor or 0, record.txid.seq, record.protocol),
        "" if unknown else record.protocol,
        record.branches,
        None if unknown else record.decided_at,
        record.coordinator,
        finished,
        tuple(known for known in heuristics if known.gid.txid == record.txid),
        cause=record.cause,
        key=key or "",
    )


def undecided_info(  # noqa: PLR0917 - columns, in order
    txid: TxId, protocol: str, branches: str, coordinator: str, state: str | None, floor: int | None
) -> TransactionInfo:
    """An undecided transaction all of whose branches have voted PREPARED."""
    return TransactionInfo(
        txid,
        RecordedDecision.NOT_RECORDED,
        verdict_of(None, _state(state), floor or 0, txid.seq, Protocol(protocol)),
        protocol,
        decode_branches(branches),
        None,
        coordinator,
        finished=False,
        heuristics=(),
        precommitted=True,
    )


def encode_agent(agent: AgentBinding | None) -> str | None:
    return None if agent is None else msgspec.json.encode(agent).decode()


def decode_agent(text: str) -> AgentBinding:
    return msgspec.json.decode(text, type=AgentBinding)


def _state(text: str | None) -> SessionState | None:
    return None if text is None else SessionState(text)
