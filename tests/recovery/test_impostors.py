"""Names that the ledger never gave, or that are used again: recovery shows them, and does nothing else.

Whoever may connect to a database can prepare a transaction under any name, and read every name that is
prepared in that server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
import pytest_asyncio

from tests.recovery.world import World, told
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.participants.contract import Decision, PreparedBranch, Settled, XactStatus
from undoubt.participants.ids import Gid, Protocol
from undoubt.participants.scripted import ScriptedParticipant

HUGE = 9 * 10**18


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    yield await World().open()


def forge(
    database: ScriptedParticipant, gid: Gid, *, xid: int = 5_000, owned: bool = False, dropped: bool = False
) -> Gid:
    """A branch of that name which somebody else has prepared there."""
    database.foreign.append(
        PreparedBranch(
            gid,
            "mallory",
            database.name,
            prepared_at=0.0,
            age_s=1.0,
            xid=xid,
            evidence=None,
            owned=owned,
            owner_dropped=dropped,
        )
    )
    return gid


async def expect_only_shown(world: World, database: ScriptedParticipant, gid: Gid) -> None:
    """In a pass in which the forger is quick: what it prepared is gone before it could be touched."""
    database.xact_statuses[5_000] = XactStatus.COMMITTED
    report = await world.recover()
    assert told(report, gid) == ("report", "nothing")
    assert [call for call, of in database.calls if of == gid and call != "begin"] == []
    assert await world.heuristics() == {}


async def aborted(world: World) -> list[Gid]:
    """A transaction of a session that has ended, after its end."""
    gids = await world.left()
    await world.end_session()
    await world.recover()
    for database in world.databases.values():
        database.calls.clear()
    return gids


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("tag", ["", "00112233445566778899", "of another"])
async def test_a_name_with_a_wrong_tag(world: World, protocol: Protocol, tag: str) -> None:
    """Broken if anybody can make up transactions of an ended session: each would be rolled back, and recorded
    as a heuristic commit where its maker is quicker."""
    one, _ = await aborted(world)
    forged = replace(one, protocol=protocol, tag=tag)
    if tag == "of another":
        forged = replace(one, protocol=protocol, txid=world.session.txid(one.txid.seq + 1))
    await expect_only_shown(world, world.orders, forge(world.orders, forged, owned=True))


@pytest.mark.parametrize("protocol", list(Protocol))
async def test_a_huge_number_records_nothing(world: World, protocol: Protocol) -> None:
    """Broken if a number that somebody writes into a name is read as a size, or decided about."""
    one, _ = await aborted(world)
    forged = replace(one, protocol=protocol, txid=world.session.txid(HUGE), tag="")
    await expect_only_shown(world, world.orders, forge(world.orders, forged, owned=True))
    assert (await world.ledger.records([forged.txid]))[forged.txid] is RecordedDecision.NOT_RECORDED


async def test_a_right_name_in_another_database(world: World) -> None:
    """Broken if a branch is believed to be the one that its name says, wherever it lies."""
    one, _ = await aborted(world)
    await expect_only_shown(world, world.payments, forge(world.payments, one, owned=True))


async def test_a_right_name_of_another_role(world: World) -> None:
    """Broken if an ended transaction's name, which everybody could read, can be used again by everybody."""
    one, _ = await aborted(world)
    await expect_only_shown(world, world.orders, forge(world.orders, one))


@pytest.mark.parametrize("decision", [Decision.ABORT, None], ids=["abort recorded", "presumed abort"])
async def test_a_right_name_of_a_role_that_was_dropped(world: World, decision: Decision | None) -> None:
    """Broken if who may make roles prepares the name of an aborted transaction as one of them, drops it, and
    has that counted as a branch of ours, in doubt until a superuser ends it."""
    one, _ = await world.left(decision)
    await world.end_session()
    await world.recover()
    world.orders.calls.clear()
    await expect_only_shown(world, world.orders, forge(world.orders, one, dropped=True))


@pytest.mark.parametrize("decision", [Decision.COMMIT, Decision.ABORT])
async def test_a_role_that_was_dropped_after_its_branch_was_recorded(
    world: World, decision: Decision
) -> None:
    """Broken if the very branch that was recorded counts as a stranger's, because its role was dropped: then
    it is never ended."""
    one, _ = await world.left(decision)
    xid = world.orders.prepared[one]
    listed = world.orders.in_doubt

    async def in_doubt() -> Sequence[PreparedBranch]:
        return [replace(each, owned=False, owner_dropped=True) for each in await listed()]

    world.orders.in_doubt = in_doubt  # type: ignore[method-assign]
    report = await world.recover()
    assert one not in world.orders.prepared, (xid, report)
    assert await world.heuristics() == {}


async def test_a_right_name_with_another_transaction_id(world: World) -> None:
    """Broken if a branch that was lost after its vote is replaced by another of the same name, and the loss
    is never told."""
    one, two = await world.left(Decision.COMMIT)
    lost = world.payments.prepared.pop(two)
    world.payments.xact_statuses[lost] = XactStatus.ABORTED
    forge(world.payments, two, owned=True)
    report = await world.recover()
    assert [call for call, of in world.payments.calls if of == two and call.startswith("settle")] == []
    assert one not in world.orders.prepared
    await world.recover()
    assert {gid: found.kind for gid, found in (await world.heuristics()).items()} == {
        two: Settled.HEURISTIC_ROLLBACK
    }, report


async def test_the_other_branchs_name_does_not_finish_a_transaction(world: World) -> None:
    """Broken if a branch that lies in another database counts for the one that was recorded."""
    _, two = await world.left(Decision.COMMIT)
    lost = world.payments.prepared.pop(two)
    world.payments.xact_statuses[lost] = XactStatus.ABORTED
    forge(world.orders, two, xid=lost, owned=True)
    await world.recover()
    await world.recover()
    assert [found.kind for found in (await world.heuristics()).values()] == [Settled.HEURISTIC_ROLLBACK]
