"""One pass of recovery for every row of the table in :mod:`undoubt.recovery.plan`, against a real state
machine."""

from __future__ import annotations

import time

import pytest

from tests.recovery.world import World, told
from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.participants.contract import Decision, PreparedBranch, Settled, XactStatus
from undoubt.participants.ids import Foreign, Gid, Protocol, TxId
from undoubt.recovery.report import Report


@pytest.fixture
async def world() -> World:
    return await World().open()


async def test_committed_and_prepared_is_committed_and_finished(world: World) -> None:
    """Left prepared, a committed transfer would stay half done."""
    gids = await world.left(Decision.COMMIT)
    report = await world.recover()
    assert [world.databases[gid.participant].xact_status(gid) for gid in gids] == [XactStatus.COMMITTED] * 2
    assert [told(report, gid) for gid in gids] == [("commit", "done")] * 2
    assert report.finished == (str(gids[0].txid),)
    assert await world.unfinished() == set()
    assert await world.heuristics() == {}


async def test_committed_and_absent_with_committed_books_is_done(world: World) -> None:
    """The usual end of a coordinator that died between its second phase and its finish."""
    gids = await world.left(Decision.COMMIT)
    for gid in gids:
        world.databases[gid.participant].finish_by_hand(gid, Decision.COMMIT)
    report = await world.recover()
    assert [told(report, gid) for gid in gids] == [("finish", "done")] * 2
    assert await world.unfinished() == set()
    assert await world.heuristics() == {}


async def test_committed_and_absent_but_in_progress_is_looked_at_again(world: World) -> None:
    """A branch that is being finished right now must not be taken for lost."""
    gid, other = await world.left(Decision.COMMIT)
    xid = world.orders.prepared.pop(gid)
    assert world.orders.xact_statuses[xid] is XactStatus.IN_PROGRESS
    report = await world.recover()
    assert told(report, gid) == ("look_again", "look_again")
    assert told(report, other) == ("commit", "done")
    assert await world.unfinished() == {gid.txid}
    assert await world.heuristics() == {}


async def test_committed_and_busy_is_looked_at_again(world: World) -> None:
    gid, _ = await world.left(Decision.COMMIT)
    world.orders.script.commit = [Settled.BUSY]
    assert told(await world.recover(), gid) == ("commit", "look_again")
    assert await world.unfinished() == {gid.txid}
    world.orders.script.commit = []
    assert told(await world.recover(), gid) == ("commit", "done")
    assert await world.unfinished() == set()


async def test_committed_and_absent_with_aborted_books_is_a_heuristic_rollback(world: World) -> None:
    """Somebody rolled back half of a committed transfer: it must be shown until a person has seen it."""
    gid, _ = await world.left(Decision.COMMIT)
    world.orders.finish_by_hand(gid, Decision.ABORT)
    before = time.time()
    report = await world.recover()
    assert told(report, gid) == ("heuristic", "done")
    found = (await world.heuristics())[gid]
    assert (found.kind, found.decision) == (Settled.HEURISTIC_ROLLBACK, Decision.COMMIT)
    assert before <= found.found_at <= time.time()
    assert found.note
    assert "forget" in world.orders.trace(gid)
    assert await world.unfinished() == set()


async def test_committed_and_absent_with_an_xid_of_the_future_is_a_heuristic_rollback(world: World) -> None:
    """The database lost the prepare (a crash without fsync, a restore on the same timeline)."""
    gids = world.gids()
    evidence = {gid: await world.prepare(gid) for gid in gids}
    await world.decide(Decision.COMMIT, evidence)
    del world.orders.prepared[gids[0]]
    world.orders.next_xid = evidence[gids[0]].xid - 1
    await world.recover()
    assert (await world.heuristics())[gids[0]].kind is Settled.HEURISTIC_ROLLBACK


@pytest.mark.parametrize("changed", ["system", "timeline", "nothing recorded"])
async def test_committed_and_absent_without_evidence_is_a_hazard(world: World, changed: str) -> None:
    """After a failover the books of another timeline prove nothing; nor may they be believed."""
    gids = world.gids()
    evidence = {gid: await world.prepare(gid) for gid in gids}
    world.orders.finish_by_hand(gids[0], Decision.COMMIT)
    if changed == "system":
        world.orders.system += 1
    elif changed == "timeline":
        world.orders.timeline = "00000002"
    if changed == "nothing recorded":
        records = [BranchRecord(gid.branch, gid.participant) for gid in gids]
        await world.ledger.decide(gids[0].txid, Decision.COMMIT, records)
    else:
        await world.decide(Decision.COMMIT, evidence)
    assert told(await world.recover(), gids[0]) == ("heuristic", "done")
    assert {gid: one.kind for gid, one in (await world.heuristics()).items()} == {
        gids[0]: Settled.HEURISTIC_HAZARD
    }
    assert await world.unfinished() == set()


async def test_aborted_by_record_and_prepared_is_rolled_back(world: World) -> None:
    gids = await world.left(Decision.ABORT)
    report = await world.recover()
    assert [world.databases[gid.participant].xact_status(gid) for gid in gids] == [XactStatus.ABORTED] * 2
    assert [told(report, gid) for gid in gids] == [("rollback", "done")] * 2
    assert await world.unfinished() == set()


async def test_aborted_by_presumption_and_prepared_is_rolled_back(world: World) -> None:
    """The coordinator died before the decision: its session's end aborts what it left."""
    gids = await world.left()
    await world.end_session()
    await world.recover()
    assert [world.databases[gid.participant].xact_status(gid) for gid in gids] == [XactStatus.ABORTED] * 2


async def test_aborted_and_vanished_with_a_committed_xid_is_a_heuristic_commit(world: World) -> None:
    """Between list and rollback somebody committed it: half of an aborted transfer is there."""
    gid, _ = await world.left(Decision.ABORT)

    async def by_hand(call: str, of: Gid) -> None:
        if call == "settle_rollback" and of in world.orders.prepared:
            world.orders.finish_by_hand(of, Decision.COMMIT)

    world.orders.before = by_hand
    await world.recover()
    found = (await world.heuristics())[gid]
    assert (found.kind, found.decision) == (Settled.HEURISTIC_COMMIT, Decision.ABORT)
    assert await world.unfinished() == set()


async def test_presumed_aborted_and_vanished_with_a_committed_xid_is_a_heuristic_commit(world: World) -> None:
    """Nothing is recorded of a presumed abort: the list itself has to say whose branch it was."""
    gid, _ = await world.left()
    await world.end_session()

    async def by_hand(call: str, of: Gid) -> None:
        if call == "settle_rollback" and of in world.orders.prepared:
            world.orders.finish_by_hand(of, Decision.COMMIT)

    world.orders.before = by_hand
    await world.recover()
    found = (await world.heuristics())[gid]
    assert (found.kind, found.decision) == (Settled.HEURISTIC_COMMIT, Decision.ABORT)


async def test_aborted_and_vanished_before_the_list_with_a_committed_xid_is_a_heuristic_commit(
    world: World,
) -> None:
    gid, _ = await world.left(Decision.ABORT)
    world.orders.finish_by_hand(gid, Decision.COMMIT)
    await world.recover()
    assert (await world.heuristics())[gid].kind is Settled.HEURISTIC_COMMIT


async def test_aborted_and_absent_otherwise_is_done(world: World) -> None:
    gid, other = await world.left(Decision.ABORT)
    world.orders.finish_by_hand(gid, Decision.ABORT)
    world.payments.timeline = "00000002"
    del world.payments.prepared[other]
    await world.recover()
    assert await world.heuristics() == {}
    assert await world.unfinished() == set()


async def test_active_is_left_alone(world: World) -> None:
    """Rolled back, its living coordinator would commit the other half."""
    gids = await world.left()
    service = world.service()
    report = await service.run_once()
    assert [told(report, gid) for gid in gids] == [("wait", "nothing")] * 2
    assert [gid in world.databases[gid.participant].prepared for gid in gids] == [True, True]
    assert service.status().counters.seen_active == 2
    assert [call for call in world.orders.trace() if call.startswith("settle")] == []


@pytest.mark.parametrize("protocol", [Protocol.THREE_PHASE, Protocol.PAXOS])
async def test_ask_protocol_is_never_presumed(world: World, protocol: Protocol) -> None:
    """Their participants, or acceptors, may have committed without the ledger."""
    gids = await world.left(protocol=protocol)
    await world.end_session()
    report = await world.recover()
    assert [told(report, gid) for gid in gids] == [("terminate", "nothing")] * 2
    assert all(gid in world.databases[gid.participant].prepared for gid in gids)


async def test_gids_are_asked_about_under_their_own_protocol(world: World) -> None:
    """Asked as two-phase, a 3PC branch would be presumed aborted."""
    two, three = await world.left(), await world.left(protocol=Protocol.THREE_PHASE)
    await world.end_session()
    report = await world.recover()
    assert told(report, two[0]) == ("rollback", "done")
    assert told(report, three[0]) == ("terminate", "nothing")


@pytest.mark.parametrize("unknown", ["session", "nonce"])
async def test_forgotten_is_reported_and_never_touched(world: World, unknown: str) -> None:
    """The ledger knows nothing: it may have committed elsewhere, only a person can find out."""
    await world.end_session()
    mine = world.session.txid(1)
    txid = TxId(99, mine.nonce, 1) if unknown == "session" else TxId(mine.session, "f" * 16, 1)
    gid = Gid(world.ledger.ledger_id, Protocol.TWO_PHASE, txid, 1, "orders")
    await world.prepare(gid)
    await untouched(world, gid, await world.recover())


async def test_another_ledgers_gid_is_reported_and_never_touched(world: World) -> None:
    """Two installations share a database: to presume about the other's is to destroy its transactions."""
    await world.end_session()
    gid = Gid("zzzzzzzzzz", Protocol.TWO_PHASE, world.session.txid(1), 1, "orders")
    await world.prepare(gid)
    await untouched(world, gid, await world.recover())


async def test_a_foreign_gid_is_reported_and_never_touched(world: World) -> None:
    world.orders.foreign.append(PreparedBranch(Foreign("someone's"), "dba", "orders", 0.0, 5.0, 7))
    report = await world.recover()
    assert told(report, "someone's") == ("report", "nothing")
    assert world.orders.trace() == []


async def untouched(world: World, gid: Gid, report: Report) -> None:
    assert told(report, gid) == ("report", "nothing")
    assert gid in world.orders.prepared
    assert world.orders.trace() == ["begin", "prepare"]
