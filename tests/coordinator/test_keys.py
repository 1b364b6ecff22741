"""Transactions with an idempotency key, over scripted participants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.coordinator.stage import Stage
from undoubt.coordinator.errors import (
    AlreadyCommitted,
    DistributedDeadlock,
    KeyInUse,
    LedgerUnavailable,
    OutcomeUnknown,
    TransactionAborted,
    TransactionEnded,
    VersionHeldBack,
)
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.coordinator.ledger.keys import KeyState
from undoubt.coordinator.transaction import Transaction
from undoubt.participants.bounds import OutOfBounds
from undoubt.participants.contract import Decision, Work, XactStatus
from undoubt.participants.errors import UsageError
from undoubt.participants.scripted import Script

SOON_S = 0.05


class Shop(Stage):
    """Counts the orders that were made."""

    made = 0

    async def order(self, tx: Transaction, *names: str) -> dict[str, int]:
        for name in names or ("alpha", "beta"):
            await tx.branch(name)
        self.made += 1
        return {"order": self.made}


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    stage = Shop({name: Script() for name in ("alpha", "beta")})
    async with stage.coordinator:
        yield stage


@pytest.fixture
async def other(shop: Shop) -> AsyncIterator[Shop]:
    """Another coordinator of the same ledger."""
    stage = Shop({name: Script() for name in ("alpha", "beta")}, shop.ledger)
    async with stage.coordinator:
        yield stage


async def test_a_repeated_key_returns_the_first_result(shop: Shop, other: Shop) -> None:
    """An order would be made twice, or its second caller would get another answer."""
    first = await shop.coordinator.run(shop.order, key="order-42")
    assert first == {"order": 1}
    assert await shop.coordinator.run(shop.order, key="order-42") == first
    assert await other.coordinator.run(other.order, key="order-42") == first
    assert (shop.made, other.made) == (1, 0)
    assert await other.coordinator.run(other.order, key="order-43") == first
    assert other.made == 1


async def test_a_block_says_that_it_is_repeated(shop: Shop, other: Shop) -> None:
    """The body of the block would do the work again, beside the transaction that has committed."""
    async with shop.coordinator.transaction(key="k") as tx:
        assert not tx.repeated
        assert tx.result is None
        await shop.order(tx)
        tx.result = ["made", 1]
        first = tx.id
    with pytest.raises(TransactionEnded):
        tx.result = "late"
    async with other.coordinator.transaction(key="k") as again:
        assert again.repeated
        assert not again.active
        assert (again.id, again.result) == (first, ["made", 1])
        with pytest.raises(AlreadyCommitted) as caught:
            await again.branch("alpha")
        with pytest.raises(AlreadyCommitted):
            again.result = "another"
        await again.rollback()
        result = await again.commit()
        assert (result.txid, result.repeated, result.pending) == (first, True, ())
    assert (caught.value.txid, caught.value.result, caught.value.key) == (first, ["made", 1], "k")
    with pytest.raises(AlreadyCommitted):
        async with other.coordinator.transaction(key="k") as again:
            await other.order(again)
    assert not other.participants["alpha"].calls


async def test_of_two_at_once_one_waits_for_the_other(shop: Shop, other: Shop) -> None:
    """Both would run."""
    arrived = shop.hold("before_decide")
    first = asyncio.create_task(shop.coordinator.run(shop.order, key="k"))
    await arrived.wait()
    second = asyncio.create_task(other.coordinator.run(other.order, key="k"))
    while "k" not in shop.ledger.machine.state.keys.claimed:
        await asyncio.sleep(0)
    assert not second.done()
    shop.gates["before_decide"].set()
    assert await first == await second == {"order": 1}
    assert other.made == 0


@pytest.mark.parametrize("end", ["raises", "rolls back", "votes no", "times out"])
async def test_a_key_whose_first_run_aborted_runs_again(shop: Shop, other: Shop, end: str) -> None:
    """A customer whose first try failed could never order; or would wait until the session ends."""
    if end == "votes no":
        shop.participants["beta"].script.prepare = ConnectionError("no answer")
    with pytest.raises((ValueError, TransactionAborted)):
        async with shop.coordinator.transaction(key="k", timeout=SOON_S if end == "times out" else 30) as tx:
            await shop.order(tx)
            tx.result = "of the first run"
            match end:
                case "raises":
                    raise ValueError
                case "rolls back":
                    await tx.rollback()
                    raise ValueError
                case "times out":
                    await asyncio.sleep(60)
                case _:
                    pass
    assert (await other.coordinator.run(other.order, key="k", timeout=2)) == {"order": 1}
    assert await shop.coordinator.outcome(tx.id) is RecordedDecision.ABORT
    holder = await shop.ledger.key_holder("k")
    assert holder is not None
    assert holder.state is KeyState.COMMITTED


async def test_a_key_is_freed_only_after_the_branches_are_rolled_back(shop: Shop, other: Shop) -> None:
    """The second run would wait for the locks of the first, or read what that has not undone."""
    arrived = shop.hold("rollback beta")

    async def fail() -> None:
        async with shop.coordinator.transaction(key="k") as tx:
            await shop.order(tx)
            raise ValueError("as told")

    failing = asyncio.create_task(fail())
    await arrived.wait()
    with pytest.raises(KeyInUse):
        await other.coordinator.run(other.order, key="k", timeout=SOON_S)
    shop.gates["rollback beta"].set()
    with pytest.raises(ValueError, match="told"):
        await failing
    assert await other.coordinator.run(other.order, key="k") == {"order": 1}


async def test_a_deadlock_is_tried_again_with_its_key(shop: Shop) -> None:
    """The second attempt would wait for its own first one."""
    attempts = 0

    async def work(tx: Transaction) -> int:
        nonlocal attempts
        attempts += 1
        await shop.order(tx)
        if attempts < 3:
            raise DistributedDeadlock(tx.id, [str(tx.id), "other"], ["alpha", "beta"])
        return attempts

    assert await shop.coordinator.run(work, key="k") == 3
    assert await shop.coordinator.run(work, key="k") == 3
    assert attempts == 3


@pytest.mark.parametrize("work", [Work.WRITES, Work.READ_ONLY])
@pytest.mark.parametrize("names", [(), ("alpha",), ("alpha", "beta")])
async def test_every_commit_with_a_key_is_recorded(
    names: tuple[str, ...], work: Work, shop: Shop, other: Shop
) -> None:
    """A commit in one phase, or of readers alone, leaves no record: its key would run again."""
    for name in names:
        shop.participants[name].script.work = work
    async with shop.coordinator.transaction(key="k") as tx:
        for name in names:
            await tx.branch(name)
        tx.result = 1
    assert await other.coordinator.outcome(tx.id) is RecordedDecision.COMMIT
    assert not any(call == "commit_one_phase" for p in shop.participants.values() for call, _ in p.calls)
    async with other.coordinator.transaction(key="k") as again:
        assert (again.repeated, again.result) == (True, 1)
    await shop.coordinator.close()
    assert not shop.ledger.machine.unfinished()
    assert shop.in_doubt() == 0
    assert XactStatus.ABORTED not in shop.xact_statuses()


async def test_key_result_and_commit_are_one_command(shop: Shop) -> None:
    """A process that dies between two commands would leave a commit without a key, or a key without its
    commit."""
    await shop.coordinator.run(shop.order, key="k")
    kinds = [type(command).__name__ for command in shop.ledger.commands]
    assert kinds.count("ClaimKey") == kinds.count("CommitKey") == 1
    assert "Decide" not in kinds


async def test_a_commit_without_an_answer_is_found_by_its_key(
    shop: Shop, other: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A customer whose first answer was lost would order twice."""
    commit = shop.ledger.commit_key
    heard = asyncio.Event()

    async def unanswered(*arguments: Any) -> Decision:
        decision = await commit(*arguments)
        if not heard.is_set():
            raise LedgerUnavailable("no answer, for a test")
        return decision

    monkeypatch.setattr(shop.ledger, "commit_key", unanswered)
    with pytest.raises(OutcomeUnknown) as caught:
        await shop.coordinator.run(shop.order, key="k", timeout=0.2)
    async with other.coordinator.transaction(key="k") as again:
        assert (again.repeated, again.id, again.result) == (True, caught.value.txid, {"order": 1})
    heard.set()
    await shop.coordinator.close()
    assert shop.xact_statuses() == {XactStatus.COMMITTED}


async def test_a_key_of_a_dead_coordinator_is_free_after_its_session(shop: Shop, other: Shop) -> None:
    """The key would be blocked for ever; or be free while the transaction can still commit."""
    arrived = shop.hold("before_decide")
    first = asyncio.create_task(shop.coordinator.run(shop.order, key="k", timeout=60))
    await arrived.wait()
    with pytest.raises(KeyInUse) as caught:
        await other.coordinator.run(other.order, key="k", timeout=SOON_S)
    assert caught.value.txid.session == shop.coordinator.session.id  # type: ignore[union-attr]
    waiting = asyncio.create_task(other.coordinator.run(other.order, key="k", timeout=30))
    await asyncio.sleep(SOON_S)
    assert not waiting.done()
    await shop.ledger.close_session(shop.coordinator.session)  # type: ignore[arg-type]
    assert await waiting == {"order": 1}
    shop.gates["before_decide"].set()
    with pytest.raises(TransactionAborted):
        await first


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_claim_without_an_answer_does_not_block_its_key(
    shop: Shop, other: Shop, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    """A claim of which its coordinator does not know would be renewed with the session, for ever."""
    claim = shop.ledger.claim_key

    async def unanswered(*arguments: Any) -> None:
        if recorded:
            await claim(*arguments)
        raise LedgerUnavailable("no answer, for a test")

    with monkeypatch.context() as patched:
        patched.setattr(shop.ledger, "claim_key", unanswered)
        with pytest.raises(LedgerUnavailable):
            await shop.coordinator.run(shop.order, key="k")
    assert await other.coordinator.run(other.order, key="k", timeout=2) == {"order": 1}
    assert shop.made == 0


async def test_a_cancelled_claim_does_not_block_its_key(shop: Shop, other: Shop) -> None:
    """As above: the caller may be cancelled while it waits for the ledger, or for the key."""
    async with other.coordinator.transaction(key="k") as tx:
        waiting = asyncio.create_task(shop.coordinator.run(shop.order, key="k"))
        await asyncio.sleep(SOON_S)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await tx.rollback()
    assert await other.coordinator.run(other.order, key="k", timeout=2) == {"order": 1}


async def test_a_lost_key_is_an_unknown_outcome(shop: Shop, other: Shop) -> None:
    """After a restore the first run may have committed: neither running again nor waiting is right."""
    async with shop.coordinator.transaction(key="k") as tx:
        await shop.ledger.begin_incarnation("a test")
        with pytest.raises((OutcomeUnknown, LedgerUnavailable)) as caught:
            await other.coordinator.run(other.order, key="k", timeout=2)
        await tx.rollback()
    if isinstance(caught.value, OutcomeUnknown):
        assert caught.value.txid == tx.id
    assert other.made == 0


@pytest.mark.parametrize("protocol", ["3pc", "paxos"])
async def test_a_key_needs_a_decision_of_the_ledger(shop: Shop, protocol: str) -> None:
    """Participants, or acceptors, would decide, and the ledger would not know which key has committed."""
    with pytest.raises(UsageError):
        shop.coordinator.transaction(key="k", protocol=protocol)
    stage = Shop({"alpha": Script()}, shop.ledger, protocol="3pc")
    async with stage.coordinator:
        with pytest.raises(UsageError, match="protocol='2pc'"):
            stage.coordinator.transaction(key="k")
        assert await stage.coordinator.run(lambda tx: stage.order(tx, "alpha"), key="k", protocol="2pc")


@pytest.mark.parametrize("key", ["", "x" * 201, "a\0b", "\ud800", 42, b"k"])
async def test_a_key_out_of_bounds_is_refused_at_the_door(shop: Shop, key: Any) -> None:
    """It would be refused by the ledger, after the transaction has begun."""
    with pytest.raises(OutOfBounds, match="key"):
        shop.coordinator.transaction(key=key)


async def test_a_result_that_cannot_be_stored_commits_nothing(shop: Shop, other: Shop) -> None:
    """The first caller would get another value than each later one, or the commit would fail for ever."""

    async def work(tx: Transaction) -> object:
        await shop.order(tx)
        return {1, 2}

    with pytest.raises(OutOfBounds, match="set"):
        await shop.coordinator.run(work, key="k")
    assert await other.coordinator.run(other.order, key="k", timeout=2) == {"order": 1}
    async with shop.coordinator.transaction() as tx:
        with pytest.raises(UsageError, match="key"):
            tx.result = 1
        assert tx.result is None


async def test_a_session_without_a_key_of_its_own_says_so(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was opened while the cluster had a member of version 0.1.0: the ledger could not verify a proof."""
    monkeypatch.setattr("undoubt.participants.ids.SessionKey.key_proof", lambda *_: "")
    with pytest.raises(VersionHeldBack):
        await shop.coordinator.run(shop.order, key="k")


async def test_a_function_that_commits_itself_keeps_the_result_that_it_has_set(shop: Shop) -> None:
    """Its first caller would get a value that no later one gets."""

    async def work(tx: Transaction) -> str:
        await shop.order(tx)
        tx.result = "set"
        await tx.commit()
        return "returned"

    assert await shop.coordinator.run(work, key="k") == "set"
    assert await shop.coordinator.run(work, key="k") == "set"
    assert shop.made == 1


@pytest.mark.parametrize("inner", ["run", "start"])
async def test_a_transaction_inside_the_block_of_its_own_key_is_refused_at_once(
    shop: Shop, other: Shop, inner: str
) -> None:
    """It would wait for itself until its timeout. Another task, or another coordinator, may wait."""
    async with shop.coordinator.transaction(key="k", timeout=60) as tx:
        with pytest.raises(UsageError, match="wait for itself"):
            if inner == "run":
                await shop.coordinator.run(shop.order, key="k", timeout=60)
            else:
                await shop.coordinator.transaction(key="k", timeout=60).start()
        with pytest.raises(KeyInUse):
            await asyncio.create_task(shop.coordinator.run(shop.order, key="k", timeout=SOON_S))
        await shop.order(tx)
        assert await shop.coordinator.run(shop.order, key="another", timeout=60) == {"order": 2}
    async with other.coordinator.transaction(key="k") as again:
        assert (again.repeated, again.id) == (True, tx.id)


async def test_a_result_is_stored_as_it_is_at_the_commit(shop: Shop, other: Shop) -> None:
    """What is put into it after it was set would be lost without a word."""
    async with shop.coordinator.transaction(key="k") as tx:
        await shop.order(tx)
        tx.result = made = dict[str, object]()
        made["order"] = 1
        tx.result["items"] = ["a lamp"]
    made["late"] = True
    assert tx.result == {"order": 1, "items": ["a lamp"]}
    async with other.coordinator.transaction(key="k") as again:
        assert again.result == {"order": 1, "items": ["a lamp"]}


async def test_a_result_that_has_become_impossible_commits_nothing(shop: Shop, other: Shop) -> None:
    """It can be stored when it is set, and not when the commit begins."""
    with pytest.raises(TransactionAborted, match="result has a value of type set"):
        async with shop.coordinator.transaction(key="k") as tx:
            await shop.order(tx)
            tx.result = made = dict[str, object]()
            made["items"] = {1}
    assert shop.in_doubt() == 0
    assert await other.coordinator.run(other.order, key="k", timeout=2) == {"order": 1}


async def test_a_function_that_sets_its_result_may_return_nothing(shop: Shop) -> None:
    """The result would be None, for the first caller and all later ones."""

    async def work(tx: Transaction) -> None:
        await shop.order(tx)
        tx.result = "set"

    for _ in range(2):
        assert await shop.coordinator.run(work, key="k") == "set"  # type: ignore[func-returns-value]
    assert shop.made == 1


async def test_a_commit_that_goes_on_after_its_block_is_waited_for(shop: Shop) -> None:
    """Its outcome is unknown to the task that has left the block, which may ask again with the key."""
    arrived = shop.hold("before_decide")
    with pytest.raises(OutcomeUnknown):
        await shop.coordinator.run(shop.order, key="k", timeout=SOON_S)
    assert arrived.is_set()
    with pytest.raises(KeyInUse):
        await shop.coordinator.run(shop.order, key="k", timeout=SOON_S)
    shop.gates["before_decide"].set()
    assert await shop.coordinator.run(shop.order, key="k", timeout=30) == {"order": 1}
