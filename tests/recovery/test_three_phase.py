"""Recovery of three-phase commits, with their ledger and without it."""

from __future__ import annotations

import asyncio

import pytest

from tests.recovery.world import World, told
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision, Verdict
from undoubt.coordinator.protocols import termination
from undoubt.participants.contract import Decision, PreparedBranch, Settled, XactStatus
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Gid, Protocol
from undoubt.participants.registry import Registry
from undoubt.participants.three_phase import BranchState, Charter, Event, Termination
from undoubt.recovery import terminate
from undoubt.recovery.resolve import RecoveryContext
from undoubt.recovery.sweep import sweep
from undoubt.recovery.terminate import Terminator
from undoubt.recovery.without_ledger import WhichLedger, WithoutLedger
from undoubt.recovery.worker import one_pass

NAMES = ("orders", "payments", "stock")
THREE = Protocol.THREE_PHASE


@pytest.fixture
async def world() -> World:
    return await World(*NAMES).open()


async def left(world: World, precommitted: int = 0, *, rule: Termination = Termination.QUORUM) -> list[Gid]:
    """A transaction whose coordinator died with everything prepared, and PRECOMMIT in the ledger, if it had
    come to that, and in the first ``precommitted`` participants."""
    gids = world.gids(THREE)
    charter = Charter(tuple(gids), rule)
    records = []
    for gid in gids:
        assert await world.databases[gid.participant].states.enlist(gid, charter)
        seen = await world.prepare(gid)
        records.append(BranchRecord(gid.branch, gid.participant, seen.xid, seen.system, seen.timeline))
    if precommitted:
        await world.ledger.precommit(gids[0].txid, records)
    for gid in gids[:precommitted]:
        assert await world.databases[gid.participant].states.attempt(gid, 1, Event.TRY_COMMIT)
    return gids


def xact_statuses(world: World, gids: list[Gid]) -> list[XactStatus]:
    return [world.databases[gid.participant].xact_status(gid) for gid in gids]


async def recovered(world: World, gids: list[Gid]) -> RecordedDecision:
    """Passes until nothing is prepared; what the ledger has recorded."""
    for _ in range(20):
        await world.recover()
        if not any(gid in world.databases[gid.participant].prepared for gid in gids):
            break
    return (await world.ledger.records([gids[0].txid]))[gids[0].txid]


@pytest.mark.parametrize(
    ("precommitted", "xact_status"),
    [
        (0, XactStatus.ABORTED),
        (1, XactStatus.COMMITTED),
        (2, XactStatus.COMMITTED),
        (3, XactStatus.COMMITTED),
    ],
)
async def test_the_rows_decide_and_the_ledger_records(
    world: World, precommitted: int, xact_status: XactStatus
) -> None:
    """Broken if recovery presumes anything, or ends a transaction and leaves no record of it."""
    gids = await left(world, precommitted)
    await world.end_session()
    record = await recovered(world, gids)
    assert xact_statuses(world, gids) == [xact_status] * 3
    assert record is (
        RecordedDecision.COMMIT if xact_status is XactStatus.COMMITTED else RecordedDecision.ABORT
    )
    await world.recover()
    assert await world.unfinished() == set()
    assert await world.heuristics() == {}
    assert not world.ledger.machine.state.precommitted


async def test_a_live_coordinator_is_left_alone(world: World) -> None:
    """Broken if recovery ends transactions under the feet of their coordinators."""
    gids = await left(world, 1)
    report = await world.recover()
    assert [told(report, gid) for gid in gids] == [("wait", "nothing")] * 3
    assert [row.last_elected for row in world.orders.states.rows.values()] == [1]


async def test_a_session_that_is_gone_does_not_turn_commit_into_abort(world: World) -> None:
    """Broken if the ledger's rule for two-phase commit is applied to an outcome that the rows have fixed."""
    gids = await left(world, 3)
    await world.end_session()
    assert (await world.ledger.outcomes([gids[0]]))[gids[0]] is Verdict.ASK_PROTOCOL
    assert await recovered(world, gids) is RecordedDecision.COMMIT


async def test_a_minority_blocks_and_says_so(world: World) -> None:
    """Broken if the reachable one of three participants decides for all."""
    gids = await left(world, 0)
    await world.end_session()
    for name in ("payments", "stock"):
        world.databases[name].down = ParticipantUnavailable(name, "is down")
    report = await world.recover()
    assert told(report, gids[0]) == ("terminate", "look_again")
    line = report.of(gids[0])
    assert line is not None
    assert "is down" in line.why
    assert gids[0] in world.orders.prepared
    # Nor does it write to its database in every pass until the others are back.
    assert world.orders.states.rows[gids[0]].last_elected == 1
    for name in ("payments", "stock"):
        world.databases[name].down = None
    assert await recovered(world, gids) is RecordedDecision.ABORT


@pytest.mark.parametrize("precommitted", [0, 3])
async def test_one_that_says_nothing_holds_up_only_the_first_to_ask(
    world: World, monkeypatch: pytest.MonkeyPatch, precommitted: int
) -> None:
    """Broken if each of many transactions waits for a participant that hangs: what else there is to recover
    at the others would wait for all of them."""
    monkeypatch.setattr(termination, "ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(terminate, "LATE_S", 3_600.0)
    left_behind = [await left(world, precommitted) for _ in range(100)]
    await world.end_session()
    asked: list[str] = []
    hanging = asyncio.Event()

    async def hang(call: str, gid: Gid) -> None:
        asked.append(call)
        await hanging.wait()

    world.databases["stock"].before = hang
    tools = RecoveryContext(world.ledger, world.registry, 8)
    for _ in range(3):  # one worker ends what the other then finds decided
        await asyncio.gather(*(one_pass(tools, world.databases[name]) for name in NAMES[:2]))
    assert len(asked) <= 2 * 8 * 2  # two workers, each with as many at once, ask twice in a round
    outcome = XactStatus.COMMITTED if precommitted else XactStatus.ABORTED
    assert {world.orders.xact_status(gids[0]) for gids in left_behind} == {outcome}
    hanging.set()
    world.databases["stock"].before = None
    for _ in range(3):
        await world.recover()
    assert {xact_status for gids in left_behind for xact_status in xact_statuses(world, gids)} == {outcome}


@pytest.mark.parametrize("down", NAMES)
async def test_one_that_is_down_follows_when_it_is_back(world: World, down: str) -> None:
    """Broken if a participant that missed the termination ends otherwise."""
    gids = await left(world, 3)
    await world.end_session()
    world.databases[down].down = ParticipantUnavailable(down, "is down")
    for _ in range(10):
        await world.recover()
    assert (await world.ledger.records([gids[0].txid]))[gids[0].txid] is RecordedDecision.COMMIT
    world.databases[down].down = None
    await recovered(world, gids)
    assert xact_statuses(world, gids) == [XactStatus.COMMITTED] * 3
    assert await world.heuristics() == {}


async def test_a_late_prepare_under_a_tombstone_is_rolled_back(world: World) -> None:
    """Broken if a PREPARE that was on its way when everybody aborted stays prepared, or is committed."""
    gids = world.gids(THREE)
    charter = Charter(tuple(gids), Termination.QUORUM)
    for gid in gids:
        assert await world.databases[gid.participant].states.enlist(gid, charter)
    for gid in gids[:2]:
        await world.prepare(gid)
    await world.end_session()
    await recovered(world, gids[:2])
    await world.prepare(gids[2])
    await recovered(world, gids)
    assert xact_statuses(world, gids) == [XactStatus.ABORTED] * 3


async def test_a_branch_without_its_row_is_left_to_a_person(world: World) -> None:
    """Broken if a missing row is taken for a no: it may have been deleted after a commit elsewhere."""
    gids = await left(world, 3)
    await world.end_session()
    world.orders.states.rows.clear()
    world.payments.states.rows.clear()
    world.databases["stock"].down = ParticipantUnavailable("stock", "is down")
    report = await world.recover()
    assert told(report, gids[0]) == ("terminate", "nothing")
    assert gids[0] in world.orders.prepared


@pytest.mark.parametrize("ledger", [True, False])
async def test_a_row_that_was_lost_is_not_taken_for_one_never_made(world: World, ledger: bool) -> None:
    """Broken if a database that was set back by a restore makes the others roll back what has committed in
    one that does not answer now."""
    gids = await left(world, 3)
    await world.end_session()
    world.orders.finish_by_hand(gids[0], Decision.COMMIT)
    world.orders.down = ParticipantUnavailable("orders", "is down")
    stock = world.databases["stock"]
    stock.prepared.clear()
    stock.states.rows.clear()
    report = await (world.recover() if ledger else WithoutLedger(world.registry).run())
    assert told(report, gids[1]) == ("terminate", "nothing")
    assert gids[1] in world.payments.prepared
    world.orders.down = None
    await (world.recover() if ledger else alone(world))
    assert world.payments.xact_status(gids[1]) is XactStatus.COMMITTED


async def test_a_row_that_a_termination_made_is_no_proof_of_a_rollback(world: World) -> None:
    """Broken if "its database proves that it was rolled back" is said of a database that is set back by a
    restore, or another one, because a termination has left a row there."""
    gids = await left(world, 3)
    await world.end_session()
    stock = world.databases["stock"]
    stock.prepared.clear()
    stock.states.rows.clear()
    stock.timeline = "00000002"
    world.orders.down = ParticipantUnavailable("orders", "is down")
    await world.recover()
    assert stock.states.rows[gids[2]].state is BranchState.INITIAL
    world.orders.down = None
    world.orders.finish_by_hand(gids[0], Decision.COMMIT)  # by whoever had seen all rows
    for _ in range(3):
        await world.recover()
    assert {gid: one.kind for gid, one in (await world.heuristics()).items()} == {
        gids[2]: Settled.HEURISTIC_HAZARD
    }


def rename(world: World, **names: str) -> None:
    """As after a change of the configuration: participants by their former names, and what they are called
    now."""
    world.registry = Registry()
    for name, database in world.databases.items():
        database.name = names.get(name, name)
        world.registry.add(database)


@pytest.mark.parametrize("ledger", [True, False])
async def test_participants_that_were_renamed_are_found_by_what_they_hold(world: World, ledger: bool) -> None:
    """Broken if the names in a gid are looked up in today's configuration although the branch is at hand."""
    gids = await left(world, 1)
    await world.end_session()
    rename(world, orders="shop")
    world.databases["stock"].down = ParticipantUnavailable("stock", "is down")
    for _ in range(3):
        await (world.recover() if ledger else alone(world, 1))
    assert xact_statuses(world, gids)[:2] == [XactStatus.COMMITTED] * 2


@pytest.mark.parametrize("ledger", [True, False])
async def test_a_name_that_leads_to_another_database_now_splits_nothing(world: World, ledger: bool) -> None:
    """Broken if a row that is missing in the database that has the name now is taken for one that was never
    made."""
    gids = await left(world, 3)
    await world.end_session()
    world.orders.finish_by_hand(gids[0], Decision.COMMIT)
    rename(world, orders="payments", payments="orders")
    for _ in range(3):
        await (world.recover() if ledger else alone(world, 1))
    assert XactStatus.ABORTED not in xact_statuses(world, gids)


async def test_committed_by_hand_against_tombstones_is_a_conflict(world: World) -> None:
    """Broken if a branch that a person committed drags others along, or is overlooked."""
    gids = await left(world, 0)
    await world.end_session()
    world.orders.finish_by_hand(gids[0], Decision.COMMIT)
    charter = world.payments.states.rows[gids[1]].charter
    assert await world.payments.states.bury(gids[1], charter)
    report = await world.recover()
    assert ("terminate", "nothing") in {told(report, gid) for gid in gids[1:]}  # one of two at a time
    assert gids[2] in world.databases["stock"].prepared


@pytest.mark.parametrize("ledger", [True, False])
async def test_committed_by_hand_before_the_votes_drags_nobody_along(world: World, ledger: bool) -> None:
    """Broken if COMMIT is recorded, and carried out elsewhere, of a transaction that one has voted
    against."""
    gids = await left(world, 0)
    await world.end_session()
    stock = world.databases["stock"]
    stock.finish_by_hand(gids[2], Decision.ABORT)  # as after a vote against it
    world.orders.finish_by_hand(gids[0], Decision.COMMIT)
    for _ in range(3):
        report = await (world.recover() if ledger else WithoutLedger(world.registry).run())
    assert told(report, gids[1]) == ("terminate", "nothing")
    assert gids[1] in world.payments.prepared
    assert await world.unfinished() == set()


async def test_many_recoveries_at_once_agree(world: World) -> None:
    """Broken if two that elect themselves at once end it differently, or stop each other for ever."""
    for precommitted in (0, 1, 2, 3):
        gids = await left(world, precommitted)
        await world.end_session()
        for _ in range(40):
            await asyncio.gather(*(world.recover() for _ in range(3)))
            if not any(gid in world.databases[gid.participant].prepared for gid in gids):
                break
        assert len(set(xact_statuses(world, gids))) == 1
        assert XactStatus.IN_PROGRESS not in xact_statuses(world, gids)
        await world.open()
    assert await world.heuristics() == {}


async def swept(world: World) -> None:
    for participant in world.registry:
        terminator = Terminator(world.ledger, world.registry, None)
        await sweep(world.ledger, terminator, participant, 0.0, 0.0)


async def test_rows_that_nobody_deleted_are_swept(world: World) -> None:
    """Broken if a dead coordinator's row stays for ever, or goes before its transaction is finished."""
    gids = await left(world, 3)
    await swept(world)
    assert len(world.orders.states.rows) == 1  # its coordinator is alive
    await world.end_session()
    world.payments.down = ParticipantUnavailable("payments", "is down")
    for _ in range(3):
        await world.recover()
        await sweep(world.ledger, Terminator(world.ledger, world.registry, None), world.orders, 0.0, 0.0)
    assert len(world.orders.states.rows) == 1  # payments has not applied the decision
    world.payments.down = None
    await recovered(world, gids)
    await world.recover()
    await swept(world)
    assert [database.states.rows for database in world.databases.values()] == [{}, {}, {}]


async def test_a_tombstone_outlives_a_slow_prepare_and_its_ledger(world: World) -> None:
    """The fear: an abort is recorded while a PREPARE is still on its way, the tombstone is swept, the ledger
    is lost, and then the branch appears: prepared, and nobody can tell that it was aborted."""
    gids = world.gids(THREE)
    charter = Charter(tuple(gids), Termination.QUORUM)
    for gid in gids:
        assert await world.databases[gid.participant].states.bury(gid, charter)
    records = [BranchRecord(gid.branch, gid.participant) for gid in gids]
    await world.ledger.decide(gids[0].txid, Decision.ABORT, records, protocol=THREE)
    await world.ledger.finish([gids[0].txid])
    await world.end_session()
    terminator = Terminator(world.ledger, world.registry, None)
    assert await sweep(world.ledger, terminator, world.orders, 0.0) == []
    await world.prepare(gids[0])
    assert xact_statuses(world, gids[:1]) == [XactStatus.IN_PROGRESS]
    for _ in range(5):
        await WithoutLedger(world.registry, world.ledger.ledger_id).run()
    assert xact_statuses(world, gids[:1]) == [XactStatus.ABORTED]
    assert await sweep(world.ledger, terminator, world.orders, 0.0, 0.0) == gids[:1]


async def test_the_ledger_learns_how_a_transaction_ended_without_it(world: World) -> None:
    """Broken if a PRECOMMIT holds its session for ever because no branch is prepared any more."""
    gids = await left(world, 3)
    for gid in gids:
        await world.databases[gid.participant].settle(gid, Decision.COMMIT, None)
    await world.end_session()
    await swept(world)
    assert (await world.ledger.records([gids[0].txid]))[gids[0].txid] is RecordedDecision.COMMIT
    await world.recover()
    assert await world.unfinished() == set()
    assert await world.heuristics() == {}
    assert not world.ledger.machine.state.precommitted


# Without the ledger.


async def alone(world: World, passes: int = 20, ledger_id: str | None = None) -> None:
    for _ in range(passes):
        report = await WithoutLedger(world.registry, ledger_id).run()
        if not any(line.result == "look_again" for line in report.lines):
            break


@pytest.mark.parametrize(
    ("precommitted", "xact_status"),
    [
        (0, XactStatus.ABORTED),
        (1, XactStatus.COMMITTED),
        (2, XactStatus.COMMITTED),
        (3, XactStatus.COMMITTED),
    ],
)
@pytest.mark.parametrize("rule", list(Termination))
async def test_the_participants_end_it_among_themselves(
    world: World, precommitted: int, xact_status: XactStatus, rule: Termination
) -> None:
    """Broken if the ledger is needed after all."""
    gids = await left(world, precommitted, rule=rule)
    await alone(world)
    assert xact_statuses(world, gids) == [xact_status] * 3


async def test_what_needs_databases_that_nobody_has_named_is_not_waited_for(world: World) -> None:
    """Broken if a command that ends once nothing is left for it to do never ends; or does not wait for one
    that is only down."""
    gids = await left(world, 3)
    world.registry.remove("payments")
    world.registry.remove("stock")
    report = await WithoutLedger(world.registry).run()
    assert told(report, gids[0]) == ("terminate", "nothing")
    line = report.of(gids[0])
    assert line is not None
    assert "'stock' is not configured here" in line.why
    world.registry.add(world.databases["stock"])
    world.databases["stock"].down = ParticipantUnavailable("stock", "is down")
    report = await WithoutLedger(world.registry).run()
    assert told(report, gids[0]) == ("terminate", "look_again")
    world.databases["stock"].down = None
    await alone(world)
    assert world.orders.xact_status(gids[0]) is XactStatus.COMMITTED


async def test_a_name_that_is_prepared_in_another_database_as_well_splits_nothing(world: World) -> None:
    """Broken if the row of a branch vouches for what has its name in another database: the row is missing
    there, which would read as a no, and the others would roll back what has committed in the one that does
    not answer."""
    orders, payments, stock = await left(world, 2)
    world.payments.finish_by_hand(payments, Decision.COMMIT)
    other = world.databases["stock"]
    await world.prepare(orders, other)  # by whoever has the application's role there
    world.payments.down = ParticipantUnavailable("payments", "is down")
    report = await WithoutLedger(world.registry).run()
    shown = {(line.participant, line.action, line.result) for line in report.lines if line.gid == str(orders)}
    assert shown == {("orders", "commit", "done"), ("stock", "report", "nothing")}
    [why] = [line.why for line in report.lines if line.action == "report"]
    assert "names participant 'orders', and is prepared in another database" in why
    assert world.orders.xact_status(orders) is XactStatus.COMMITTED
    assert other.xact_statuses[other.branches[0].xid] is XactStatus.COMMITTED
    assert list(other.prepared) == [orders]
    assert list(other.states.rows) == [stock]


async def test_a_name_that_another_role_prepared_is_only_shown(world: World) -> None:
    """Broken if a row vouches for whatever is prepared beside it: everybody can read the name of a branch,
    and prepare it again after its end."""
    gids = await left(world, 0)
    await alone(world)
    world.orders.calls.clear()
    world.orders.foreign.append(
        PreparedBranch(gids[0], "mallory", "orders", 0.0, 1.0, xid=5_000, evidence=None, owned=False)
    )
    report = await WithoutLedger(world.registry).run()
    assert told(report, gids[0]) == ("report", "nothing")
    assert {call for call, _ in world.orders.calls} == {"read_state"}


@pytest.mark.parametrize("protocol", [Protocol.TWO_PHASE, Protocol.PAXOS])
async def test_other_protocols_are_refused_with_the_reason(world: World, protocol: Protocol) -> None:
    """Broken if anything is presumed about a transaction whose decision is lost."""
    gids = await world.left(protocol=protocol)
    report = await WithoutLedger(world.registry).run()
    for gid in gids:
        line = report.of(gid)
        assert line is not None
        assert (line.action, line.result) == ("report", "nothing")
        assert "ledger" in line.why
        assert gid in world.databases[gid.participant].prepared


async def test_branches_of_several_ledgers_need_a_name(world: World) -> None:
    """Broken if the transactions of another installation, whose ledger is alive, are ended too."""
    gids = await left(world, 3)
    other = Gid("zzzzzzzzzz", THREE, gids[0].txid, 1, "orders")
    await world.orders.states.enlist(other, Charter((other,), Termination.QUORUM))
    await world.prepare(other)
    with pytest.raises(WhichLedger) as raised:
        await WithoutLedger(world.registry).run()
    assert raised.value.ledgers == ("abcdefghij", "zzzzzzzzzz")
    await alone(world, ledger_id="abcdefghij")
    assert xact_statuses(world, gids) == [XactStatus.COMMITTED] * 3
    assert other in world.orders.prepared


async def test_a_dry_run_changes_nothing(world: World) -> None:
    """Broken if looking already elects."""
    gids = await left(world, 1)
    report = await WithoutLedger(world.registry).run(dry_run=True)
    assert {told(report, gid) for gid in gids} == {("terminate", "would_do")}
    assert {row.last_elected for row in world.orders.states.rows.values()} == {1}
    assert {row.state for row in world.payments.states.rows.values()} == {BranchState.WAIT}
