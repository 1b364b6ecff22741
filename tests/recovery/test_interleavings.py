"""Recovery beside whatever else happens: live coordinators, other recoveries, people, crashes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.recovery.world import FAST, World, told
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.contract import Verdict
from undoubt.participants.contract import Decision, Settled, XactStatus
from undoubt.participants.errors import ParticipantRefused, ParticipantUnavailable
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.scripted import ScriptedParticipant
from undoubt.recovery.report import Counters
from undoubt.recovery.settings import RecoverySettings
from undoubt.recovery.steps import RecoveryStep


@pytest.fixture
async def world() -> World:
    return await World().open()


async def test_the_ledger_is_asked_after_the_list(world: World) -> None:
    """A transaction that commits in between would be taken for undecided, and rolled back half."""
    gids = world.gids()
    evidence = {gid: await world.prepare(gid) for gid in gids}
    listing = world.orders.in_doubt

    async def listed_then_decided_then_gone() -> Any:
        found = await listing()
        if world.ledger.machine.verdict(gids[0].txid, Protocol.TWO_PHASE) is Verdict.ACTIVE:
            await world.decide(Decision.COMMIT, evidence)
            await world.end_session()
        return found

    world.orders.in_doubt = listed_then_decided_then_gone  # type: ignore[method-assign]
    await world.recover()
    assert world.orders.xact_status(gids[0]) is XactStatus.COMMITTED


async def test_unfinished_decisions_are_read_before_the_list(world: World) -> None:
    """Read after it, a branch prepared and decided in between is missing from the list, and would count as
    lost."""
    gids: list[Gid] = []
    listing = world.orders.in_doubt

    async def listed_then_begun() -> Any:
        found = await listing()
        if not gids:
            gids.extend(await world.left(Decision.COMMIT))
            world.orders.timeline = "00000002"  # so that its books cannot help
        return found

    world.orders.in_doubt = listed_then_begun  # type: ignore[method-assign]
    report = await world.service(hazard_grace_s=0.0).run_once()
    assert report.of(gids[0]) is None
    assert await world.heuristics() == {}
    await world.recover()
    assert world.orders.xact_status(gids[0]) is XactStatus.COMMITTED
    assert await world.heuristics() == {}


async def test_a_prepare_that_arrives_after_the_scan_is_found_by_the_next(world: World) -> None:
    """A PREPARE behind a slow deferred trigger: the record of its ABORT may be finished long since."""
    gids = world.gids()
    evidence = {gid: await world.prepare(gid) for gid in gids}
    late = world.orders.prepared.pop(gids[0])
    await world.decide(Decision.ABORT, {gids[1]: evidence[gids[1]]})
    await world.recover()
    assert await world.unfinished() == set()
    world.orders.prepared[gids[0]] = late
    await world.recover()
    assert world.orders.xact_status(gids[0]) is XactStatus.ABORTED
    assert await world.heuristics() == {}


async def test_a_coordinator_in_its_second_phase_is_not_disturbed(world: World) -> None:
    """Without evidence its freshly committed branch looks lost; it finishes before the second look."""
    gids = await world.left(Decision.COMMIT)
    for gid in gids:
        world.databases[gid.participant].finish_by_hand(gid, Decision.COMMIT)
    world.orders.timeline = "00000002"
    reading, reads = world.ledger.unfinished, 0

    async def finished_before_the_second_look(*, after: TxId | None) -> Any:
        nonlocal reads
        reads += after is None
        if after is None and reads == len(world.registry) + 1:
            await world.ledger.finish([gids[0].txid])
        return await reading(after=after)

    world.ledger.unfinished = finished_before_the_second_look  # type: ignore[assignment, method-assign]
    report = await world.recover()
    assert reads == 2 * len(world.registry)
    assert told(report, gids[0]) == ("look_again", "look_again")
    assert await world.heuristics() == {}


async def test_a_branch_that_vanishes_between_list_and_commit_is_no_hazard_yet(world: World) -> None:
    """Its coordinator committed it. Only a list taken after the decision was read may prove a hazard."""
    gids = await world.left(Decision.COMMIT)
    world.orders.timeline = "00000002"

    async def overtaken(call: str, gid: Gid) -> None:
        if call == "settle_commit" and gid in world.orders.prepared:
            world.orders.finish_by_hand(gid, Decision.COMMIT)
            world.orders.timeline = "00000003"
            await world.ledger.finish([gid.txid])

    world.orders.before = overtaken
    assert told(await world.recover(), gids[0]) == ("commit", "look_again")
    assert await world.heuristics() == {}


async def test_two_recoveries_at_once_do_no_harm(world: World) -> None:
    committed = [await world.left(Decision.COMMIT) for _ in range(20)]
    aborted = [await world.left(Decision.ABORT) for _ in range(20)]

    async def switch(_call: str, _gid: Gid) -> None:
        await asyncio.sleep(0)

    for database in world.databases.values():
        database.before = switch
    await asyncio.gather(*(world.service().run_once() for _ in range(3)))
    assert {world.orders.xact_status(gids[0]) for gids in committed} == {XactStatus.COMMITTED}
    assert {world.payments.xact_status(gids[1]) for gids in aborted} == {XactStatus.ABORTED}
    assert await world.unfinished() == set()
    assert await world.heuristics() == {}


async def test_a_participant_that_is_down_keeps_only_its_own_branches_waiting(world: World) -> None:
    gids = await world.left(Decision.COMMIT)
    world.payments.down = ParticipantUnavailable("payments", "connection refused")
    report = await world.recover()
    assert world.orders.xact_status(gids[0]) is XactStatus.COMMITTED
    assert "connection refused" in report.errors["payments"]
    assert [(one.txid, one.waits_for, one.unknown) for one in report.unfinished] == [
        (str(gids[0].txid), ("payments",), ())
    ]
    assert await world.unfinished() == {gids[0].txid}
    world.payments.down = None
    await world.recover()
    assert world.payments.xact_status(gids[1]) is XactStatus.COMMITTED
    assert await world.unfinished() == set()


@pytest.mark.parametrize("error", [ParticipantUnavailable, ParticipantRefused])
async def test_branches_that_cannot_be_settled_hold_up_no_other(world: World, error: Any) -> None:
    """The role may not finish them (42501), or they time out: a thousand others wait behind them."""
    every = [(await world.left(Decision.COMMIT))[0] for _ in range(12)]
    bad = set(every[::2])

    async def refuse(call: str, gid: Gid) -> None:
        if gid in bad and call == "settle_commit":
            raise error("orders", "not this one")

    world.orders.before = refuse
    report = await world.service(RecoverySettings(parallel=1)).run_once()
    assert {told(report, gid) for gid in bad} == {("commit", "failed")}
    assert set(world.orders.prepared) == bad
    assert await world.unfinished() == {gid.txid for gid in bad}


async def test_a_database_that_went_down_is_not_asked_for_every_branch(world: World) -> None:
    """Ten thousand connection timeouts, one after another, would take a day."""
    for _ in range(40):
        await world.left(Decision.COMMIT)
    tries = 0

    async def gone(_call: str, _gid: Gid) -> None:
        nonlocal tries
        tries += 1
        raise ParticipantUnavailable("orders", "connection lost")

    world.orders.before = gone
    report = await world.recover()
    assert "connection lost" in report.errors["orders"]
    assert tries <= FAST.parallel + 3


async def test_an_unknown_participant_keeps_the_record_unfinished_and_is_told(world: World) -> None:
    """Finished without it, nobody would ever look for its branch again."""
    gids = await world.left(Decision.COMMIT)
    world.registry.remove("payments")
    report = await world.recover()
    assert world.orders.xact_status(gids[0]) is XactStatus.COMMITTED
    assert await world.unfinished() == {gids[0].txid}
    assert report.unfinished[0].unknown == ("payments",)


async def test_a_branch_in_another_database_than_it_names_is_touched_by_nobody(world: World) -> None:
    """Whoever may connect to one database could make recovery believe in the branches of another."""
    gids = await world.left(Decision.COMMIT)
    world.payments.finish_by_hand(gids[1], Decision.ABORT)
    await world.prepare(gids[1], world.orders)
    report = await world.recover()
    assert gids[1] in world.orders.prepared
    assert [line.standing for line in report.lines if line.participant == "orders"].count("impostor") == 1
    assert (await world.heuristics())[gids[1]].kind is Settled.HEURISTIC_ROLLBACK


async def test_a_branch_of_a_participant_that_had_another_name_is_settled_where_it_is_found(
    world: World,
) -> None:
    gids = await world.left(Decision.COMMIT)
    renamed = world.registry.remove("payments")
    assert isinstance(renamed, ScriptedParticipant)
    renamed.name, renamed.names = "billing", frozenset({"billing", "payments"})
    world.registry.add(renamed)
    report = await world.recover()
    assert renamed.xact_status(gids[1]) is XactStatus.COMMITTED
    assert told(report, gids[1]) == ("commit", "done")
    assert await world.unfinished() == set()


async def test_a_branch_that_a_participant_had_committed_under_its_former_name_is_done(world: World) -> None:
    """Otherwise it stays unfinished for ever."""
    gids = await world.left(Decision.COMMIT)
    world.payments.finish_by_hand(gids[1], Decision.COMMIT)
    renamed = world.registry.remove("payments")
    assert isinstance(renamed, ScriptedParticipant)
    renamed.name, renamed.names = "billing", frozenset({"billing", "payments"})
    world.registry.add(renamed)
    await world.recover()
    assert await world.unfinished() == set()
    assert await world.heuristics() == {}


async def test_without_any_participant_the_unfinished_are_told(world: World) -> None:
    """A configuration that lost its databases must not look as if all were well."""
    gids = await world.left(Decision.COMMIT)
    for name in list(world.registry.names()):
        world.registry.remove(name)
    report = await world.recover()
    assert [one.txid for one in report.unfinished] == [str(gids[0].txid)]
    assert report.unfinished[0].unknown == ("orders", "payments")


async def test_with_every_participant_down_the_unfinished_are_told(world: World) -> None:
    gids = await world.left(Decision.COMMIT)
    for database in world.databases.values():
        database.down = ParticipantUnavailable(database.name, "down")
    report = await world.recover()
    assert [one.txid for one in report.unfinished] == [str(gids[0].txid)]


async def test_two_participants_may_be_one_database(world: World) -> None:
    """Each sees the other's branches: whoever comes second must not take them for lost."""
    world.payments.prepared = world.orders.prepared
    world.payments.xact_statuses = world.orders.xact_statuses
    world.payments.next_xid = 2_000
    gids = await world.left(Decision.COMMIT)
    world.orders.next_xid = world.payments.next_xid
    await world.recover()
    assert {
        world.orders.xact_statuses[branch.xid] for db in world.databases.values() for branch in db.branches
    } == {XactStatus.COMMITTED}
    assert await world.unfinished() == set()
    assert await world.heuristics() == {}
    assert gids[0] not in world.orders.prepared


async def test_dry_run_tells_and_touches_nothing(world: World) -> None:
    committed, aborted = await world.left(Decision.COMMIT), await world.left(Decision.ABORT)
    lost, done = await world.left(Decision.COMMIT), await world.left(Decision.COMMIT)
    world.orders.finish_by_hand(lost[0], Decision.ABORT)
    for gid in done:
        world.databases[gid.participant].finish_by_hand(gid, Decision.COMMIT)
    commands = list(world.ledger.commands)
    seen: list[str] = []
    service = world.service(observe=lambda step, _: seen.append(step))
    report = await service.run_once(dry_run=True)
    assert told(report, committed[0]) == ("commit", "would_do")
    assert told(report, aborted[1]) == ("rollback", "would_do")
    assert told(report, lost[0]) == ("heuristic", "would_do")
    assert told(report, done[0]) == ("finish", "would_do")
    assert (report.dry_run, report.finished, len(report.unfinished)) == (True, (), 4)
    assert world.ledger.commands == commands
    assert {call for call in world.orders.trace() if call not in {"begin", "prepare"}} == set()
    assert seen == []
    assert service.status().counters == Counters()


async def test_heuristics_are_recorded_exactly_once_and_shown_until_forgotten(world: World) -> None:
    gid, _ = await world.left(Decision.COMMIT)
    world.orders.finish_by_hand(gid, Decision.ABORT)
    world.payments.down = ParticipantUnavailable("payments", "down")  # so that the record stays unfinished
    service = world.service()
    for _ in range(3):
        await service.run_once()
    assert service.status().counters.heuristics == 1
    first = (await world.heuristics())[gid]
    await world.recover()  # another recovery, which knows nothing of the first
    assert (await world.heuristics())[gid] == first
    assert await world.ledger.forget_heuristic(gid)
    await world.recover()
    assert await world.heuristics() == {}


async def test_a_heuristic_is_recorded_before_the_participant_may_forget(world: World) -> None:
    gid, _ = await world.left(Decision.COMMIT)
    world.orders.finish_by_hand(gid, Decision.ABORT)
    world.ledger.down = LedgerUnavailable("no quorum")
    report = await world.recover()
    assert report.errors["orders"] == "no quorum"
    assert "forget" not in world.orders.trace(gid)
    world.ledger.down = None
    await world.recover()
    assert gid in await world.heuristics()
    assert "forget" in world.orders.trace(gid)


@pytest.mark.parametrize("step", RecoveryStep)
async def test_a_recovery_that_dies_at_any_step_leaves_the_rest_to_the_next(
    world: World, step: RecoveryStep
) -> None:
    """And every named step is passed: one that is not would be a hole in the crash matrix."""
    committed, aborted = await world.left(Decision.COMMIT), await world.left(Decision.ABORT)
    reached: list[str] = []

    class Killed(BaseException):
        pass

    async def kill(at: Any, subject: str) -> None:
        if at is step:
            reached.append(subject)
            raise Killed

    with pytest.raises(Killed):
        await world.service(observe=kill).run_once()
    assert reached
    await world.recover()
    assert [world.databases[gid.participant].xact_status(gid) for gid in committed] == [
        XactStatus.COMMITTED
    ] * 2
    assert [world.databases[gid.participant].xact_status(gid) for gid in aborted] == [XactStatus.ABORTED] * 2
    assert await world.unfinished() == set()
    assert await world.heuristics() == {}


async def test_a_finish_that_fails_is_made_again_by_the_same_recovery(world: World) -> None:
    """Claimed for ever, the decision would stay unfinished until a restart."""
    gids = await world.left(Decision.COMMIT)
    service, finishing = world.service(), world.ledger.finish

    async def unavailable(_txids: object) -> None:
        raise LedgerUnavailable("no quorum")

    world.ledger.finish = unavailable  # type: ignore[method-assign, assignment]
    assert "no quorum" in (await service.run_once()).errors.values()
    assert await world.unfinished() == {gids[0].txid}
    world.ledger.finish = finishing  # type: ignore[method-assign]
    assert (await service.run_once()).finished == (str(gids[0].txid),)
    assert await world.unfinished() == set()


async def test_a_doubt_that_is_over_costs_no_second_look(world: World) -> None:
    gids = await world.left(Decision.COMMIT)
    for gid in gids:
        world.databases[gid.participant].finish_by_hand(gid, Decision.COMMIT)
    world.orders.timeline = "00000002"
    service = world.service()
    await service.run_once()
    assert service.status().counters.scans == 4
    await service.run_once()
    assert service.status().counters.scans == 6


async def test_steps_come_in_order_with_their_subjects(world: World) -> None:
    gid, other = await world.left(Decision.COMMIT)
    seen: list[tuple[str, str]] = []
    world.registry.remove("payments")
    await world.service(observe=lambda step, subject: seen.append((step, subject))).run_once()
    world.registry.add(world.payments)
    world.registry.remove("orders")
    service = world.service(observe=lambda step, subject: seen.append((step, subject)))
    service.context.progress.done(gid)
    await service.run_once()
    around = ["before_scan", "after_scan", "after_outcomes"]
    assert seen == [
        *((step, "orders") for step in around),
        ("before_commit", str(gid)),
        ("after_commit", str(gid)),
        *((step, "payments") for step in around),
        ("before_commit", str(other)),
        ("after_commit", str(other)),
        ("before_finish", str(gid.txid)),
        ("after_finish", str(gid.txid)),
    ]


async def test_no_more_branches_at_once_than_set(world: World) -> None:
    for _ in range(30):
        await world.left(Decision.COMMIT)
    now = most = 0

    async def settling(call: str, _gid: Gid) -> None:
        nonlocal now, most
        if call == "settle_commit":
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1

    world.orders.before = settling
    await world.service(RecoverySettings(parallel=4)).run_once()
    assert most == 4


async def test_an_answer_that_is_no_settled_outcome_of_ours_is_recorded_as_mixed(world: World) -> None:
    gid, _ = await world.left(Decision.COMMIT)
    world.orders.script.commit = [Settled.HEURISTIC_MIXED]
    await world.recover()
    assert (await world.heuristics())[gid].kind is Settled.HEURISTIC_MIXED
