"""What an operator may do by hand, against the ledger's real state machine: the rules that a tired person at
three in the morning must not be able to break."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.recovery.world import World
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.commands import Restore
from undoubt.coordinator.ledger.contract import Heuristic
from undoubt.participants.contract import Decision, PreparedBranch, Settled, XactStatus
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Foreign, Gid, Protocol
from undoubt.recovery.errors import Conflict, NotAllSeen, NotOurs, NotPrepared, StillBusy
from undoubt.recovery.operator.resolve import Operator
from undoubt.recovery.operator.survey import SurveyedBranch, survey
from undoubt.recovery.plan import BranchStanding


@pytest.fixture
async def world() -> World:
    return await World().open()


def operator(world: World) -> Operator:
    return Operator(world.ledger, world.registry)


async def test_rollback_fences_the_coordinator_first(world: World) -> None:
    """Rolled back without a recorded ABORT, its living coordinator would commit the other branch."""
    gids = world.gids()
    evidence = {gid: await world.prepare(gid) for gid in gids}
    await operator(world).roll_back(gids[0])
    assert world.orders.xact_status(gids[0]) is XactStatus.ABORTED
    with pytest.raises(AssertionError):
        await world.decide(Decision.COMMIT, evidence)  # the coordinator, a moment later
    await world.recover()
    assert world.payments.xact_status(gids[1]) is XactStatus.ABORTED
    assert await world.unfinished() == set()
    assert await world.heuristics() == {}


async def test_rollback_of_what_is_aborted_needs_no_record(world: World) -> None:
    """Broken if the command that ``explain`` calls safe fails where the ledger can record nothing more: here
    of a transaction below the floor of a session from before a restore."""
    gid, _ = await world.left()
    await world.ledger.keep_alive(world.session, gid.txid.seq + 1)
    await world.ledger.propose(Restore(1_000))
    await operator(world).roll_back(gid)
    assert world.orders.xact_status(gid) is XactStatus.ABORTED


async def test_rollback_without_a_ledger_does_nothing(world: World) -> None:
    gid, _ = await world.left()
    world.ledger.down = LedgerUnavailable("no quorum")
    with pytest.raises(LedgerUnavailable):
        await operator(world).roll_back(gid)
    assert gid in world.orders.prepared


@pytest.mark.parametrize("heuristic", [False, True])
async def test_commit_of_a_recorded_commit_is_no_heuristic(world: World, heuristic: bool) -> None:
    gid, _ = await world.left(Decision.COMMIT)
    await operator(world).commit(gid, heuristic=heuristic)
    assert world.orders.xact_status(gid) is XactStatus.COMMITTED
    assert await world.heuristics() == {}


@pytest.mark.parametrize("decision", [None, Decision.ABORT])
async def test_commit_needs_a_recorded_commit(world: World, decision: Decision | None) -> None:
    gid, _ = await world.left(decision)
    with pytest.raises(Conflict, match="--heuristic"):
        await operator(world).commit(gid)
    assert gid in world.orders.prepared
    await operator(world).commit(gid, heuristic=True, note="agreed with accounting")
    found = (await world.heuristics())[gid]
    assert (found.kind, found.decision) == (Settled.HEURISTIC_COMMIT, decision)
    assert "agreed with accounting" in found.note


@pytest.mark.parametrize("heuristic", [False, True])
async def test_rollback_of_what_is_aborted_anyway_is_no_heuristic(world: World, heuristic: bool) -> None:
    gid, _ = await world.left()
    await world.end_session()
    await operator(world).roll_back(gid, heuristic=heuristic)
    assert world.orders.xact_status(gid) is XactStatus.ABORTED
    assert await world.heuristics() == {}


async def test_rollback_against_a_recorded_commit_needs_heuristic(world: World) -> None:
    gid, _ = await world.left(Decision.COMMIT)
    with pytest.raises(Conflict, match="COMMIT is recorded"):
        await operator(world).roll_back(gid)
    assert gid in world.orders.prepared
    await operator(world).roll_back(gid, heuristic=True)
    found = (await world.heuristics())[gid]
    assert (found.kind, found.decision) == (Settled.HEURISTIC_ROLLBACK, Decision.COMMIT)
    await world.recover()
    assert (await world.heuristics())[gid] == found  # recovery finds the same, and adds nothing
    assert await world.unfinished() == set()


@pytest.mark.parametrize("kind", ["forgotten", "3pc"])
async def test_rollback_where_abort_cannot_be_recorded_needs_heuristic(world: World, kind: str) -> None:
    if kind == "3pc":
        gid = (await world.left(protocol=Protocol.THREE_PHASE))[0]
    else:
        await world.ledger.open_session("later", 10.0)
        [gid, _] = world.gids()
        del world.ledger.machine.state.sessions[gid.txid.session]  # as retention drops it
        await world.prepare(gid)
    with pytest.raises(Conflict, match="cannot be recorded"):
        await operator(world).roll_back(gid)
    assert gid in world.orders.prepared
    await operator(world).roll_back(gid, heuristic=True, note="looked at by hand")
    found = (await world.heuristics())[gid]
    assert (found.kind, found.decision) == (Settled.HEURISTIC_ROLLBACK, None)


async def test_a_crash_in_the_middle_of_a_heuristic_leaves_a_hazard(world: World) -> None:
    """Recorded only afterwards, half an applied transaction would have no trace at all."""
    gid, _ = await world.left(Decision.ABORT)
    seen: list[Heuristic] = []

    async def crash(call: str, _gid: Gid) -> None:
        if call == "settle_commit":
            seen.extend(await world.ledger.heuristics())
            raise ParticipantUnavailable("orders", "crash")

    world.orders.before = crash
    with pytest.raises(ParticipantUnavailable):
        await operator(world).commit(gid, heuristic=True, note="mine")
    assert [(one.gid, one.kind, one.decision) for one in seen] == [
        (gid, Settled.HEURISTIC_HAZARD, Decision.ABORT)
    ]
    assert gid in await world.heuristics()


@pytest.mark.parametrize("decision", [None, Decision.ABORT])
async def test_somebody_who_was_faster_is_told_of(world: World, decision: Decision | None) -> None:
    """While the operator commits against an ABORT, a colleague rolls it back: that is as decided, and no
    heuristic may stay open. Without a decision it must."""
    gid, _ = await world.left(decision)

    async def colleague(call: str, of: Gid) -> None:
        if call == "settle_commit":
            xid = world.orders.prepared[of]
            world.orders.finish_by_hand(of, Decision.ABORT)
            assert world.orders.xact_statuses[xid] is XactStatus.ABORTED

    world.orders.before = colleague
    if decision is None:
        world.orders.script.commit = [Settled.HEURISTIC_ROLLBACK]  # no evidence is recorded to tell by
    with pytest.raises(Conflict, match="another process"):
        await operator(world).commit(gid, heuristic=True)
    found = await world.heuristics()
    if decision is None:
        assert (found[gid].kind, found[gid].decision) == (Settled.HEURISTIC_ROLLBACK, None)
    else:
        assert found == {}


async def test_a_decision_that_meets_the_opposite_is_recorded_and_told(world: World) -> None:
    gid, _ = await world.left(Decision.COMMIT)

    async def colleague(call: str, of: Gid) -> None:
        if call == "settle_commit":
            world.orders.finish_by_hand(of, Decision.ABORT)

    world.orders.before = colleague
    with pytest.raises(Conflict, match="ended as heuristic_rollback"):
        await operator(world).commit(gid)
    found = (await world.heuristics())[gid]
    assert (found.kind, found.decision) == (Settled.HEURISTIC_ROLLBACK, Decision.COMMIT)
    assert "forget" in world.orders.trace(gid)


async def test_what_is_not_ours_is_refused_even_with_heuristic(world: World) -> None:
    strange = Gid("zzzzzzzzzz", Protocol.TWO_PHASE, world.session.txid(1), 1, "orders")
    await world.prepare(strange)
    world.orders.foreign.append(PreparedBranch(Foreign("x"), "dba", "orders", 0.0, 1.0))
    for name in (strange, Foreign("x")):
        with pytest.raises(NotOurs):
            await operator(world).commit(name, heuristic=True)
        with pytest.raises(NotOurs):
            await operator(world).roll_back(name, heuristic=True)
    assert strange in world.orders.prepared


async def test_not_found_is_certain_or_is_not_said(world: World) -> None:
    gid = world.gids()[0]
    with pytest.raises(NotPrepared):
        await operator(world).roll_back(gid)
    world.payments.down = ParticipantUnavailable("payments", "down")
    with pytest.raises(NotAllSeen):
        await operator(world).roll_back(gid)


async def test_a_busy_branch_is_waited_for_and_then_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("undoubt.recovery.operator.resolve.BUSY_PAUSE_S", 0.001)
    gid, other = await world.left(Decision.COMMIT)
    world.orders.script.commit = [Settled.BUSY, Settled.BUSY, Settled.APPLIED]
    await operator(world).commit(gid)
    assert world.orders.trace(gid).count("settle_commit") == 3
    monkeypatch.setattr("undoubt.recovery.operator.resolve.BUSY_S", 0.02)
    world.payments.script.commit = [Settled.BUSY]
    with pytest.raises(StillBusy):
        await operator(world).commit(other)


async def test_forgotten_heuristics_stay_forgotten(world: World) -> None:
    gid, _ = await world.left(Decision.COMMIT)
    await operator(world).roll_back(gid, heuristic=True)
    assert await operator(world).forget(gid)
    assert not await operator(world).forget(gid)
    assert await world.heuristics() == {}


async def forged(world: World) -> SurveyedBranch:
    """An impostor that a person was shown: another role's, under the name of a branch that is aborted."""
    gid, _ = await world.left(Decision.ABORT)
    await world.recover()
    assert gid not in world.orders.prepared
    world.orders.foreign.append(PreparedBranch(gid, "thief", "orders", 1.0, 5.0, 77, owned=False))
    found = (await survey(world.ledger, world.registry)).one(gid)
    assert found.standing is BranchStanding.IMPOSTOR
    return found


async def test_an_impostor_is_ended_and_nothing_is_recorded(world: World) -> None:
    """Broken if rolling back a stranger's transaction aborts, or marks, the transaction whose name it has."""
    found = await forged(world)
    gid = found.branch.gid
    assert isinstance(gid, Gid)
    before = await world.ledger.transaction(gid.txid)
    await operator(world).end_impostor(found)
    assert world.orders.ended == [found.branch]
    assert await world.ledger.transaction(gid.txid) == before
    assert await world.heuristics() == {}
    with pytest.raises(NotPrepared):
        await operator(world).end_impostor(found)


@pytest.mark.parametrize("heuristic", [False, True])
async def test_an_impostor_is_not_committed_nor_taken_for_a_branch(world: World, heuristic: bool) -> None:
    """Broken if a forger gets his work committed, or a record made, by asking an operator nicely."""
    found = await forged(world)
    gid = found.branch.gid
    for verb in (operator(world).commit, operator(world).roll_back):
        with pytest.raises(NotOurs, match="is an impostor: role 'thief' prepared it"):
            await verb(gid, heuristic=heuristic)
    assert world.orders.foreign == [found.branch]
    assert await world.heuristics() == {}


async def test_only_the_impostor_that_was_shown_is_ended(world: World) -> None:
    """Broken if what was prepared under the name since a person looked is ended unseen."""
    found = await forged(world)
    world.orders.foreign[0] = replace(found.branch, xid=78)
    with pytest.raises(Conflict, match="has changed since it was shown"):
        await operator(world).end_impostor(found)
    world.orders.foreign.clear()
    gid, _ = await world.left()
    honest = (await survey(world.ledger, world.registry)).one(gid)
    with pytest.raises(NotOurs, match="is no impostor"):
        await operator(world).end_impostor(honest)
    assert gid in world.orders.prepared
    assert world.orders.ended == []
