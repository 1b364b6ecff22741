"""Which ends of a wait the detector of deadlocks believes, of all that sessions say of themselves."""

from __future__ import annotations

import pytest

from tests.recovery.world import World
from undoubt.participants.contract import Claim, Waiting, WaitNode
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId
from undoubt.recovery.deadlocks import DeadlockDetector

Told = list[tuple[TxId, BaseException]]


@pytest.fixture
async def world() -> World:
    return await World().open()


def wait(waiter: WaitNode, pid: int, holder: WaitNode, holder_pid: int) -> Waiting:
    return Waiting(waiter, holder, "t1", pid, 700 + pid, holder_pid)


def claim(world: World, seq: int, pid: int, *, at: int | None = None) -> Claim:
    """What the session ``at`` says, if ``pid`` is the one that the hash was made for."""
    proof = SessionKey(world.session.key).backend(world.session.txid(seq), pid)
    return Claim(world.session.id, seq, pid if at is None else at, proof)


async def victims(world: World) -> list[TxId]:
    told: Told = []

    def cancel(txid: TxId, cause: BaseException) -> bool:
        told.append((txid, cause))
        return True

    looking = DeadlockDetector(world.ledger, world.registry, cancel)
    await looking.look()
    await looking.look()
    return sorted({txid for txid, _ in told})


@pytest.mark.parametrize("pooled", [False, True])
async def test_proved_sessions_are_their_transactions(world: World, pooled: bool) -> None:
    one, two = (claim(world, seq, 0 if pooled else 10 + seq) for seq in (1, 2))
    world.orders.waiting = [wait(one, 11, two, 12)]
    world.payments.waiting = [wait(two, 22, one, 21)]
    if not pooled:  # of another process each there
        world.payments.waiting = [wait(claim(world, 2, 22), 22, claim(world, 1, 21), 21)]
    assert await victims(world) == [world.session.txid(2)]


async def test_copied_names_wait_for_nobody(world: World) -> None:
    """Broken if a name that everybody can read makes the detector abort a transaction which waits for
    nobody."""
    one, two = claim(world, 1, 11, at=91), claim(world, 2, 12, at=92)
    world.orders.waiting = [wait(one, 91, two, 92)]
    world.payments.waiting = [wait(two, 92, one, 91)]
    assert await victims(world) == []


async def test_a_copied_name_that_waits_for_a_real_one(world: World) -> None:
    """Broken if a plain wait of one transaction for another is closed to a cycle by a forger."""
    one, two = claim(world, 1, 11), claim(world, 2, 12)
    world.orders.waiting = [wait(two, 12, one, 11)]
    world.payments.waiting = [wait(one._replace(pid=91), 91, two._replace(pid=92), 92)]
    assert await victims(world) == []


@pytest.mark.parametrize("form", ["claim", "pooled", "untagged"])
async def test_two_sessions_of_one_unproved_name_are_two(world: World, form: str) -> None:
    """Broken if a forger holds a lock that one of ours waits for, waits for another one of ours in a second
    session of the same name, and so makes a cycle of one end."""
    ours = claim(world, 1, 11)
    name: WaitNode = Claim(world.session.id, 7, 0, "AAAAAAAA")
    if form == "untagged":
        name = Gid(world.ledger.ledger_id, Protocol.TWO_PHASE, world.session.txid(7), 1, "orders")
    one, other = name, name
    if isinstance(name, Claim) and form == "claim":
        one, other = name._replace(pid=91), name._replace(pid=92)
    world.orders.waiting = [wait(ours, 11, one, 91), wait(other, 92, ours, 11)]
    assert await victims(world) == []


@pytest.mark.parametrize("known", ["of a tagged session", "of an unknown one", "of an untagged one"])
async def test_names_of_version_0_1_0(world: World, known: str) -> None:
    """Broken if a forger leaves the hash out and is believed, or sessions of before are not any more."""
    nonce = world.session.nonce
    if known == "of an untagged one":
        world.ledger.machine.state.sessions[world.session.id].tagged = False
    session = world.session.id + (5 if known == "of an unknown one" else 0)
    one, two = (
        Gid(world.ledger.ledger_id, Protocol.TWO_PHASE, TxId(session, nonce, seq), 1, "orders")
        for seq in (1, 2)
    )
    world.orders.waiting = [wait(one, 91, two, 92)]
    world.payments.waiting = [wait(two, 92, one, 91)]
    expected = [two.txid] if known == "of an untagged one" else []
    assert await victims(world) == expected
