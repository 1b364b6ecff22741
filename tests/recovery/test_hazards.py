"""A hazard says that nothing proves what became of a branch. Whatever does prove it must be asked first.

After a promotion a database does not count transaction ids from before as evidence of its own: then the
branch that a coordinator or another recovery has just committed looks the same as one that is lost. In these
stories ``timeline`` changes for that reason.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.coordinator.stage import Stage
from tests.coordinator.voting_ledger import VotingLedger
from tests.recovery.world import FAST, World, told
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.ledger.session_mark import is_marked, mark
from undoubt.coordinator.protocols.context import applied_elsewhere
from undoubt.participants.contract import Decision, Evidence, Settled, XactStatus
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Gid, SessionKey
from undoubt.participants.scripted import Script
from undoubt.recovery.errors import StillBusy
from undoubt.recovery.operator.resolve import Operator
from undoubt.recovery.scan import later
from undoubt.recovery.service import RecoveryService
from undoubt.recovery.steps import RecoveryStep
from undoubt.recovery.unfinished import UnfinishedProgress

PROMOTED = "00000002"
PROMOTED_AGAIN = "00000003"


@pytest.fixture
async def world() -> World:
    return await World().open()


# A coordinator that comes too late.


@pytest.mark.parametrize("protocol", ["2pc", "3pc", "paxos"])
async def test_a_coordinator_that_comes_after_a_recovery_records_no_hazard(protocol: str) -> None:
    """Broken if an application is told of a hazard, and an operator shown one, in a transaction that is
    committed everywhere and finished: a recovery was faster while the coordinator waited for its database."""
    stage = Stage({"alpha": Script(), "beta": Script()}, VotingLedger(), protocol=protocol)
    async with stage.coordinator:
        arrived = stage.hold("commit alpha")
        transfer = asyncio.create_task(stage.transfer())
        await arrived.wait()
        await recorded(stage.ledger)
        stage.participants["alpha"].timeline = PROMOTED
        async with RecoveryService(stage.ledger, stage.registry, FAST, always=True):
            async with asyncio.timeout(20):
                while await stage.ledger.unfinished():
                    await asyncio.sleep(0.001)
        stage.gates["commit alpha"].set()
        result = await transfer
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    assert result.pending == ()
    assert await stage.ledger.heuristics() == []


async def test_a_coordinator_waits_for_the_recovery_that_has_committed_its_branch() -> None:
    """Broken if it looks once only: that recovery has the other branches still to commit."""
    stage = Stage({"alpha": Script(), "beta": Script()})
    async with stage.coordinator:
        arrived = stage.hold("commit alpha")
        looks = 0
        transaction = stage.ledger.transaction

        async def finished_at_the_third_look(txid):  # type: ignore[no-untyped-def]
            nonlocal looks
            looks += 1
            if looks == 3:
                await stage.ledger.finish([txid])
            return await transaction(txid)

        transfer = asyncio.create_task(stage.transfer())
        await arrived.wait()
        [gid] = stage.participants["alpha"].prepared
        stage.participants["alpha"].finish_by_hand(gid, Decision.COMMIT)
        stage.participants["alpha"].timeline = PROMOTED
        stage.ledger.transaction = finished_at_the_third_look  # type: ignore[method-assign]
        stage.gates["commit alpha"].set()
        await transfer
    assert looks == 3
    assert await stage.ledger.heuristics() == []


async def recorded(ledger: Ledger) -> None:
    """A protocol's own copy comes while branches are committed."""
    async with asyncio.timeout(20):
        while not await ledger.unfinished():
            await asyncio.sleep(0.001)


# Recoveries beside one another.


async def test_a_transaction_that_is_finished_has_no_hazard() -> None:
    """Broken if a recovery that is slow between its list and its judgement records a hazard in a transaction
    that another one has committed everywhere, and finished, meanwhile."""
    world = await World("orders").open()
    gids = await world.left(Decision.COMMIT)
    world.orders.finish_by_hand(gids[0], Decision.COMMIT)
    world.orders.timeline = PROMOTED
    scans = 0

    async def finished_after_the_last_list(step: object, subject: str) -> None:
        nonlocal scans
        if step is RecoveryStep.AFTER_OUTCOMES and subject == "orders":
            scans += 1
            if scans == 2:
                await world.ledger.finish([gids[0].txid])

    service = world.service(observe=finished_after_the_last_list)
    report = await service.run_once()
    assert scans == 2
    assert [(line.action, line.result) for line in report.lines if line.gid == str(gids[0])] == [
        ("look_again", "look_again"),
        ("finish", "done"),
    ]
    assert await world.heuristics() == {}


async def test_a_hazard_that_is_finished_stays_one(world: World) -> None:
    """Broken if what was recorded of a branch, and seen by a person, counts as a proof that it committed."""
    gids = await world.left(Decision.COMMIT)
    world.orders.finish_by_hand(gids[0], Decision.ABORT)
    world.orders.timeline = PROMOTED
    await world.recover()
    assert {gid: one.kind for gid, one in (await world.heuristics()).items()} == {
        gids[0]: Settled.HEURISTIC_HAZARD
    }
    assert await world.unfinished() == set()
    assert [await applied_elsewhere(world.ledger, gid) for gid in gids] == [False, True]
    await world.ledger.forget_heuristic(gids[0])
    assert [await applied_elsewhere(world.ledger, gid) for gid in gids] == [False, True]


async def test_what_is_not_finished_as_committed_proves_no_commit(world: World) -> None:
    """Broken if a recovery concludes that a branch committed from less than a finished COMMIT."""
    undecided, unfinished, aborted = [
        (await world.left(decision))[0] for decision in (None, Decision.COMMIT, Decision.ABORT)
    ]
    await world.ledger.finish([aborted.txid])
    assert [await applied_elsewhere(world.ledger, gid) for gid in (undecided, unfinished, aborted)] == [
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("order", [Decision.COMMIT, Decision.ABORT])
async def test_what_a_list_said_is_evidence_when_the_branch_is_gone(world: World, order: Decision) -> None:
    """Broken if a recovery that saw a branch prepared after the promotion, and lost the answer to its COMMIT
    PREPARED, knows nothing any more: a participant that is down may keep the transaction unfinished for
    hours. And broken if the branch counts as committed that somebody has rolled back."""
    gids = await world.left(Decision.COMMIT)
    world.orders.timeline = PROMOTED
    world.payments.down = ParticipantUnavailable("payments", "connection refused")

    async def answer_lost(call: str, gid: Gid) -> None:
        if call == "settle_commit" and gid in world.orders.prepared:
            world.orders.finish_by_hand(gid, order)
            raise ParticipantUnavailable("orders", "connection lost")

    world.orders.before = answer_lost
    service = world.service(hazard_grace_s=0.0)
    assert told(await service.run_once(), gids[0]) == ("commit", "failed")
    found = {Decision.COMMIT: {}, Decision.ABORT: {gids[0]: Settled.HEURISTIC_ROLLBACK}}
    report = await service.run_once()
    assert told(report, gids[0]) == ("finish" if order is Decision.COMMIT else "heuristic", "done")
    assert {gid: one.kind for gid, one in (await world.heuristics()).items()} == found[order]
    assert [one.waits_for for one in report.unfinished] == [("payments",)]


async def test_a_recovery_that_is_overtaken_after_a_promotion_asks_by_what_it_listed(world: World) -> None:
    """Broken if it asks by the evidence that was recorded, which counts no more, where it has better."""
    gids = await world.left(Decision.COMMIT)
    world.orders.timeline = PROMOTED
    world.payments.down = ParticipantUnavailable("payments", "connection refused")

    async def overtaken(call: str, gid: Gid) -> None:
        if call == "settle_commit" and gid in world.orders.prepared:
            world.orders.finish_by_hand(gid, Decision.COMMIT)

    world.orders.before = overtaken
    assert told(await world.recover(), gids[0]) == ("commit", "done")
    assert await world.heuristics() == {}


async def test_what_lists_said_is_kept_as_long_as_it_may_be_asked_for(world: World) -> None:
    gids = await world.left()
    txid = gids[0].txid
    seen, key = Evidence(7, 1, PROMOTED), (txid, 1)
    progress = UnfinishedProgress()
    progress.saw("orders", {key: seen})
    await world.decide(Decision.COMMIT, {gid: Evidence(7) for gid in gids})
    progress.read({one.txid: one for one in await world.ledger.unfinished()}, 0.0)
    for _ in range(3):
        progress.saw("orders", {})  # decided after the list, and gone from the next one
        assert progress.seen("orders", gids[0]) == seen
    assert progress.seen("payments", gids[0]) is None
    progress.read({}, 1.0)
    progress.saw("orders", {})
    assert progress.seen("orders", gids[0]) is None


async def test_a_mark_waits_for_no_participant(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator died while it marked its session. Broken if the mark is shown as an unfinished commit of
    an unknown participant for ever."""

    async def finish(txids: object) -> None:
        raise LedgerUnavailable("it died here")

    session = await world.ledger.open_session("sidecar", 30.0)
    with monkeypatch.context() as patched, pytest.raises(LedgerUnavailable):
        patched.setattr(world.ledger, "finish", finish)
        await mark(world.ledger, session, SessionKey(session.key))
    assert await world.ledger.unfinished()
    await world.recover()
    assert not await world.ledger.unfinished()
    assert await is_marked(world.ledger, session)


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        (None, "recorded"),
        (Evidence(5), "recorded"),
        (Evidence(5, 1, "00000001", "first"), "recorded"),
        (Evidence(5, 1, PROMOTED, "second"), "listed"),
        (Evidence(5, 1, PROMOTED), "listed"),
    ],
)
async def test_the_evidence_that_the_books_can_answer_is_asked_by(
    listed: Evidence | None, chosen: str
) -> None:
    """Of the same place, what was recorded: it also says how far the WAL had to reach. Without a place the
    list proves nothing."""
    recorded = Evidence(5, 1, "00000001", "first", 4096)
    assert later(recorded, listed) == (recorded if chosen == "recorded" else listed)


# People.


async def test_an_operator_who_is_overtaken_records_no_hazard(world: World) -> None:
    """Broken if what recovery has committed between an operator's list and his COMMIT PREPARED becomes a
    hazard; and if he is told that all is well where nobody knows that yet."""
    gids = await world.left(Decision.COMMIT)
    operator = Operator(world.ledger, world.registry)

    async def overtaken(call: str, gid: Gid) -> None:
        if call == "settle_commit" and gid in world.orders.prepared:
            world.orders.finish_by_hand(gid, Decision.COMMIT)
            world.orders.timeline = PROMOTED_AGAIN

    world.orders.before = overtaken
    with pytest.raises(StillBusy, match="another process has ended"):
        await operator.commit(gids[0])
    assert await world.heuristics() == {}


async def test_an_operator_is_told_nothing_of_what_recovery_has_finished(world: World) -> None:
    gids = await world.left(Decision.COMMIT)
    operator = Operator(world.ledger, world.registry)

    async def finished(call: str, gid: Gid) -> None:
        if call == "settle_commit" and gid in world.orders.prepared:
            for one in gids:
                world.databases[one.participant].finish_by_hand(one, Decision.COMMIT)
            world.orders.timeline = PROMOTED_AGAIN
            await world.ledger.finish([gid.txid])

    world.orders.before = finished
    await operator.commit(gids[0])
    assert await world.heuristics() == {}
