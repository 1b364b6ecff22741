"""One verb for a whole transaction: the rules that keep a tired operator from splitting it."""

from __future__ import annotations

import pytest

from tests.recovery.world import World
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.acting import system_user
from undoubt.coordinator.ledger.commands import Restore
from undoubt.participants.contract import Decision, Settled, XactStatus
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Gid
from undoubt.recovery.errors import Conflict, NotPrepared
from undoubt.recovery.operator.resolve import Operator
from undoubt.recovery.operator.transaction import Resolver
from undoubt.recovery.operator.whole_transaction import look

COMMIT, ABORT = Decision.COMMIT, Decision.ABORT


@pytest.fixture
async def world() -> World:
    return await World().open()


def resolver(world: World) -> Resolver:
    return Resolver(world.ledger, world.registry)


def xact_statuses(world: World, gids: list[Gid]) -> list[XactStatus]:
    return [world.databases[gid.participant].xact_status(gid) for gid in gids]


async def forgotten(world: World) -> list[Gid]:
    """Undecided in a session that a restore of the ledger closed: a person must decide."""
    gids = await world.left()
    await world.ledger.propose(Restore(1_000))
    return gids


@pytest.mark.parametrize(
    ("decision", "xact_status"), [(COMMIT, XactStatus.COMMITTED), (ABORT, XactStatus.ABORTED)]
)
async def test_every_branch_ends_as_is_recorded(
    world: World, decision: Decision, xact_status: XactStatus
) -> None:
    gids = await world.left(decision)
    whole = await look(world.ledger, world.registry, gids[0].txid)
    assert whole.direction is decision
    results = await resolver(world).end(gids[0].txid, decision)
    assert [(one.gid, said) for one, said in results] == [(gid, "done") for gid in gids]
    assert xact_statuses(world, gids) == [xact_status, xact_status]
    assert await world.heuristics() == {}


@pytest.mark.parametrize(("decision", "other"), [(COMMIT, ABORT), (ABORT, COMMIT)])
async def test_the_other_direction_is_refused(world: World, decision: Decision, other: Decision) -> None:
    gids = await world.left(decision)
    with pytest.raises(Conflict, match="add --heuristic"):
        await resolver(world).end(gids[0].txid, other)
    assert all(gid in world.databases[gid.participant].prepared for gid in gids)


async def test_what_is_forgotten_ends_in_one_chosen_direction(world: World) -> None:
    gids = await forgotten(world)
    whole = await look(world.ledger, world.registry, gids[0].txid)
    assert whole.direction is None
    for chosen in (COMMIT, ABORT):
        with pytest.raises(Conflict, match="add --heuristic"):
            await resolver(world).end(gids[0].txid, chosen)
    await resolver(world).end(gids[0].txid, COMMIT, heuristic=True, note="agreed")
    assert xact_statuses(world, gids) == [XactStatus.COMMITTED, XactStatus.COMMITTED]
    assert {one.kind for one in (await world.heuristics()).values()} == {Settled.HEURISTIC_COMMIT}
    assert "no branch of it is prepared" in (await look(world.ledger, world.registry, gids[0].txid)).why


async def test_rolling_back_what_is_active_records_abort_first(world: World) -> None:
    gids = await world.left()
    with pytest.raises(Conflict, match="add --heuristic"):
        await resolver(world).end(gids[0].txid, COMMIT)
    await resolver(world).end(gids[0].txid, ABORT)
    assert (await world.ledger.records([gids[0].txid]))[gids[0].txid] == "abort"
    assert xact_statuses(world, gids) == [XactStatus.ABORTED, XactStatus.ABORTED]


@pytest.mark.parametrize("whole", [False, True])
async def test_what_contradicts_a_sibling_needs_its_own_flag(world: World, whole: bool) -> None:
    """One branch was committed by hand at three; at four the other was rolled back by somebody else."""
    one, other = await forgotten(world)
    operator = Operator(world.ledger, world.registry)
    await operator.commit(one, heuristic=True)
    with pytest.raises(Conflict, match="--contradict"):
        if whole:
            await resolver(world).end(other.txid, ABORT, heuristic=True)
        else:
            await operator.roll_back(other, heuristic=True)
    assert other in world.payments.prepared
    if whole:
        await resolver(world).end(other.txid, ABORT, heuristic=True, contradict=True)
    else:
        await operator.roll_back(other, heuristic=True, contradict=True)
    assert world.payments.xact_status(other) is XactStatus.ABORTED


async def test_a_rollback_of_what_is_active_may_contradict_a_sibling_too(world: World) -> None:
    """It records ABORT, which no flag was needed for: and the sibling was committed by hand."""
    one, other = await world.left()
    await Operator(world.ledger, world.registry).commit(one, heuristic=True)
    with pytest.raises(Conflict, match="--contradict"):
        await Operator(world.ledger, world.registry).roll_back(other)
    with pytest.raises(Conflict, match="--contradict"):
        await resolver(world).end(other.txid, ABORT)
    assert (await world.ledger.records([one.txid]))[one.txid] == "not_recorded"


async def test_what_its_database_proves_counts_as_a_split(world: World) -> None:
    """Broken if only what the ledger wrote down is looked at: somebody ended a branch in psql."""
    gids = await world.left(COMMIT)
    world.orders.finish_by_hand(gids[0], Decision.ABORT)
    whole = await look(world.ledger, world.registry, gids[0].txid)
    assert [one.number for one in whole.splits(COMMIT)] == [1]
    assert whole.splits(ABORT) == []
    with pytest.raises(NotPrepared):
        await look(world.ledger, world.registry, world.session.txid(99))


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("whole", [False, True])
async def test_what_is_applied_elsewhere_is_contradicted_only_with_its_own_flag(
    world: World, whole: bool, up: bool
) -> None:
    """Broken if only what was done by hand counts: the sibling has committed as recorded, and its database
    proves it, or does not answer."""
    one, other = await world.left(COMMIT)
    world.orders.finish_by_hand(one, COMMIT)
    if not up:
        world.orders.down = ParticipantUnavailable("orders", "down")
    operator = Operator(world.ledger, world.registry)

    async def roll_back(*, contradict: bool) -> None:
        if whole:
            await resolver(world).end(one.txid, ABORT, heuristic=True, contradict=contradict)
        else:
            await operator.roll_back(other, heuristic=True, contradict=contradict)

    with pytest.raises(Conflict, match=r"would split .*branch 1 in orders has .*--contradict"):
        await roll_back(contradict=False)
    assert other in world.payments.prepared
    assert await world.heuristics() == {}
    await roll_back(contradict=True)
    assert world.payments.xact_status(other) is XactStatus.ABORTED


@pytest.mark.parametrize("whole", [False, True])
async def test_an_abort_that_may_be_applied_elsewhere_is_contradicted_only_with_its_flag(
    world: World, whole: bool
) -> None:
    """Nothing but the decision tells of the sibling, since its database does not answer; without a list of
    the branches, any participant that does not answer may have one."""
    gids = [*await world.left(ABORT), *await world.left()]
    await world.end_session()
    world.orders.down = ParticipantUnavailable("orders", "down")
    for other in gids[1], gids[3]:
        with pytest.raises(Conflict, match=r"rolled back, or will be.*--contradict"):
            if whole:
                await resolver(world).end(other.txid, COMMIT, heuristic=True)
            else:
                await Operator(world.ledger, world.registry).commit(other, heuristic=True)
        assert other in world.payments.prepared


async def test_a_participant_that_is_gone_is_waited_for_no_more(world: World) -> None:
    gids = await world.left(COMMIT)
    txid = gids[0].txid
    with pytest.raises(Conflict, match="answers"):
        await resolver(world).gone(txid, "payments")
    world.payments.down = ParticipantUnavailable("payments", "the building burned down")
    await resolver(world).gone(txid, "payments", note="fire")
    hazard = (await world.heuristics())[gids[1]]
    assert (hazard.kind, hazard.decision) == (Settled.HEURISTIC_HAZARD, COMMIT)
    assert hazard.note.endswith("gone for good: fire")
    assert world.orders.xact_status(gids[0]) is XactStatus.COMMITTED
    assert await world.unfinished() == set()


@pytest.mark.parametrize("before", [False, True])
async def test_the_hazard_of_what_came_back_is_closed_where_it_ended_as_recorded(
    world: World, before: bool
) -> None:
    """Broken if monitoring cries forever: recovery committed the branch as decided (or it had been committed
    before the database went down), and its hazard stays open."""
    gids = await world.left(COMMIT)
    if before:
        world.payments.finish_by_hand(gids[1], COMMIT)
    world.payments.down = ParticipantUnavailable("payments", "down")
    await resolver(world).gone(gids[0].txid, "payments")
    assert gids[1] in await world.heuristics()
    world.payments.down = None
    await world.recover()
    assert xact_statuses(world, gids) == [XactStatus.COMMITTED, XactStatus.COMMITTED]
    assert await world.heuristics() == {}
    (act, *_) = await world.ledger.acts(limit=5)
    assert (act.verb, act.subject, act.result) == ("recovery: hazard closed", str(gids[1]), "done")


async def test_a_hazard_without_a_proof_stays(world: World) -> None:
    """Broken if a branch that was rolled back, or of which nothing is known, is taken for committed."""
    gids = [await world.left(COMMIT) for _ in range(2)]
    world.payments.down = ParticipantUnavailable("payments", "down")
    for one, _ in gids:
        await resolver(world).gone(one.txid, "payments")
    world.payments.down = None
    world.payments.finish_by_hand(gids[0][1], ABORT)
    world.payments.finish_by_hand(gids[1][1], COMMIT)
    world.payments.timeline = "00000002"
    await world.recover()
    assert (await world.heuristics()).keys() == {gids[0][1], gids[1][1]}


async def test_nothing_is_called_gone_without_a_decision(world: World) -> None:
    gids = await world.left()
    world.payments.down = ParticipantUnavailable("payments", "down")
    with pytest.raises(Conflict, match="no decision is recorded"):
        await resolver(world).gone(gids[0].txid, "payments")
    world.payments.down = None
    decided = await world.left(COMMIT)
    with pytest.raises(Conflict, match="no branch in participant 'invoices'"):
        await resolver(world).gone(decided[0].txid, "invoices")


async def test_recovery_waits_no_more_for_what_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another participant was down while one was called gone: the transaction is finished when it is back."""
    monkeypatch.setattr("undoubt.recovery.worker.GONE_S", 0.0)
    gids = await world.left(COMMIT)
    for database in (world.orders, world.payments):
        database.down = ParticipantUnavailable(database.name, "down")
    await resolver(world).gone(gids[0].txid, "payments")
    assert await world.unfinished() == {gids[0].txid}
    world.orders.down = None
    await world.recover()
    assert await world.unfinished() == set()


async def test_the_record_says_what_did_not_come_of_an_act(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if the audit says `done` of acts that did nothing, or not all."""
    gids = await world.left(COMMIT)

    async def silent(*_: object) -> Settled:
        raise ParticipantUnavailable(gids[1].participant, "no connection")

    monkeypatch.setattr(world.databases[gids[1].participant], "settle", silent)
    await resolver(world).end(gids[0].txid, COMMIT)
    await resolver(world).terminate(gids[0].txid)
    assert not await Operator(world.ledger, world.registry).forget(gids[0])
    monkeypatch.undo()
    await resolver(world).end(gids[0].txid, COMMIT)
    await resolver(world).end(gids[0].txid, COMMIT)
    acts = [act for act in await world.ledger.acts(limit=50) if act.verb != "indoubt commit"]
    again, done, forget, terminated, half = [act.result for act in acts]
    assert (again, done) == ("nothing: no branch of it is prepared", "done")
    assert forget == "nothing: it has no open heuristic outcome"
    assert terminated.startswith("1 of its branches is still prepared: ")
    assert half.startswith("1 of 2 branches not: ")


async def test_every_act_is_recorded_before_it_is_done(world: World) -> None:
    one, other = await forgotten(world)
    operator = Operator(world.ledger, world.registry)
    with pytest.raises(Conflict):
        await operator.roll_back(one, note="too early")
    await operator.roll_back(one, heuristic=True, note="agreed")
    await resolver(world).end(other.txid, ABORT, heuristic=True, note="the rest")
    await operator.forget(one)
    acts = list(reversed(await world.ledger.acts(limit=10)))
    assert {act.who for act in acts} == {system_user()}
    told = [(act.verb, act.subject, act.note) for act in acts]
    assert told == [
        ("indoubt rollback", str(one), "too early"),
        ("indoubt rollback --heuristic", str(one), "agreed"),
        ("tx resolve --rollback --heuristic", str(other.txid), "the rest"),
        ("indoubt rollback --heuristic", str(other), "the rest"),
        ("indoubt forget", str(one), ""),
    ]
    assert acts[0].result.startswith("Conflict: ")
    assert [act.result for act in acts[1:]] == ["done"] * 4
    # Without a ledger nothing is recorded, so nothing is done.
    third, _ = await _prepared_again(world)
    world.ledger.down = LedgerUnavailable("no quorum")
    with pytest.raises(LedgerUnavailable):
        await operator.roll_back(third, heuristic=True)
    assert third in world.orders.prepared


async def _prepared_again(world: World) -> list[Gid]:
    world.session = await world.ledger.open_session("shop", 10.0)
    return await world.left()
