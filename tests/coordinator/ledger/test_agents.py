"""Agents of last-agent commit, on every backend. Each test's docstring says what breaks if it fails."""

from __future__ import annotations

from typing import Any

import pytest

from undoubt.coordinator.errors import OutcomeUnknown, VersionHeldBack
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.agents import AgentBinding, AgentKey
from undoubt.coordinator.ledger.calls import CallingLedger
from undoubt.coordinator.ledger.commands import DrawSecret, OpenSession
from undoubt.coordinator.ledger.contract import BranchRecord, Session, Verdict
from undoubt.coordinator.ledger.machine import Machine
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId

from .conftest import Backend
from .signing import Signing
from .test_lock_conformance import begin_incarnation

AGENT = AgentBinding("orders", 2**62, "a history id")
UNREPORTED = AgentBinding("payments", None, 'another "one" \\ \u2603')


async def opened(ledger: Signing, agent: AgentBinding | None = AGENT, ttl_s: float = 600.0) -> Session:
    return await ledger.open_session("test", ttl_s, agent=agent)


def key_of(session: Session, seq: int, agent: AgentBinding = AGENT) -> AgentKey:
    """As the coordinator of the session makes it."""
    return AgentKey(agent, SessionKey(session.key).agent(session.txid(seq)))


async def test_recovery_gets_the_key_that_the_coordinator_made(ledger: Signing) -> None:
    """It would look for a row under another key, find none, and abort what has committed."""
    first, other = await opened(ledger), await opened(ledger, UNREPORTED)
    asked = [first.txid(1), other.txid(1), first.txid(2**40)]
    keys = await ledger.agent_keys(asked)
    assert keys == [key_of(first, 1), key_of(other, 1, UNREPORTED), key_of(first, 2**40)]
    assert len({key.proof for key in keys}) == 3
    assert all(len(key.proof) == 32 for key in keys)
    assert await ledger.agent_keys([]) == []


async def test_a_session_stays_bound_to_its_agent(backend: Backend) -> None:
    """Recovery is for sessions that are gone, and after restarts of the ledger."""
    closed, expired = await opened(backend.ledger), await opened(backend.ledger, ttl_s=5.0)
    await backend.ledger.close_session(closed)
    await backend.elapse(60.0)
    if backend.durable:
        await backend.reopen()
    keys = await backend.ledger.agent_keys([closed.txid(1), expired.txid(7)])
    assert keys == [key_of(closed, 1), key_of(expired, 7)]


async def test_there_is_no_key_without_an_agent(backend: Backend) -> None:
    """Who guesses a transaction would be able to write its tombstone."""
    ledger = backend.ledger
    unbound, bound = await opened(ledger, None), await opened(ledger)
    strange = TxId(bound.id, "0" * 16, 1)
    unknown = TxId(2**40, bound.nonce, 1)
    assert await ledger.agent_keys([unbound.txid(1), strange, unknown]) == [None, None, None]
    await ledger.close_session(bound)
    await backend.elapse(backend.retention_s + 150.0)
    await backend.elapse(1.0)
    assert await ledger.agent_keys([bound.txid(1)]) == [None], "its session was dropped"


@pytest.mark.parametrize(
    "agent",
    [
        AgentBinding("o" * 64, 1, "h"),
        AgentBinding("orders", -1, "h"),
        AgentBinding("orders", 2**64, "h"),
        AgentBinding("orders", 1, "h" * 101),
    ],
)
async def test_an_agent_out_of_bounds_is_refused(ledger: Signing, agent: AgentBinding) -> None:
    """A command that no node can store would stop them."""
    with pytest.raises(UsageError):
        await opened(ledger, agent)
    assert await ledger.sessions() == []


def test_a_snapshot_keeps_the_agent() -> None:
    """A node that starts from a snapshot would say that there is none: in doubt for ever."""
    machine, other = Machine("a1b2c3d4e5"), Machine("a1b2c3d4e5")
    machine.apply(DrawSecret(b"s" * 32))
    session = machine.apply(OpenSession("0" * 16, "test", 1000, tagged=True, agent=AGENT))
    assert isinstance(session, Session)
    other.restore(machine.snapshot())
    assert other.agent(session.txid(1)) == AGENT


def test_a_key_is_not_shown() -> None:
    """Logs are read by those who may not end transactions."""
    assert "secret" not in repr(AgentKey(AGENT, b"secret"))


class OldLedger(CallingLedger):
    """A member of its cluster is of version 0.1.0: it gives no tags, and knows two protocols."""

    async def _call(self, call: calls.AnyLedgerCall) -> Any:
        if call.since() > 1:
            raise VersionHeldBack("too new")
        assert isinstance(call, calls.OutcomesCall)
        return [Verdict.ABORTED for _ in call.txids]


async def test_a_name_that_an_old_ledger_cannot_have_given_hinders_no_other() -> None:
    """Broken if one prepared transaction under a name of last-agent commit, which every role can prepare,
    keeps recovery from ending all others during a rolling upgrade; or if that one is believed."""
    txid = TxId(1, "0" * 16, 1)
    ours, forged = (
        Gid("a1b2c3d4e5", protocol, txid, 1, "orders") for protocol in (Protocol.TWO_PHASE, Protocol.LAST)
    )
    old: Any = OldLedger()
    assert await old.outcomes([ours, forged]) == {ours: Verdict.ABORTED, forged: Verdict.IMPOSTOR}


async def test_an_undecided_transaction_is_never_presumed_aborted(ledger: Signing) -> None:
    """Broken if the agent has committed, and the others are rolled back because the ledger holds nothing."""
    session = await opened(ledger)
    gid = ledger.gid(session.txid(1), Protocol.LAST)
    assert await ledger.outcomes([gid]) == {gid: Verdict.ASK_PROTOCOL}
    await ledger.close_session(session)
    assert await ledger.outcomes([gid]) == {gid: Verdict.ASK_PROTOCOL}
    branches = [BranchRecord(1, "orders")]
    committed = await ledger.decide(session.txid(1), Decision.COMMIT, branches, protocol=Protocol.LAST)
    assert committed is Decision.COMMIT
    assert await ledger.outcomes([gid]) == {gid: Verdict.COMMITTED}


async def test_after_a_restore_a_missing_row_is_no_abort(backend: Backend) -> None:
    """Broken if the ledger, set back to before the COMMIT whose row was deleted since, records ABORT for it:
    the branches that are still prepared would be rolled back."""
    ledger = backend.ledger
    session = await opened(ledger)
    await begin_incarnation(backend)
    branches = [BranchRecord(1, "orders")]
    with pytest.raises(OutcomeUnknown, match="before the ledger was restored"):
        await ledger.decide(session.txid(1), Decision.ABORT, branches, protocol=Protocol.LAST)
    assert await ledger.unfinished() == []
    committed = await ledger.decide(session.txid(1), Decision.COMMIT, branches, protocol=Protocol.LAST)
    assert committed is Decision.COMMIT
    late = await ledger.decide(session.txid(1), Decision.ABORT, branches, protocol=Protocol.LAST)
    assert late is Decision.COMMIT
