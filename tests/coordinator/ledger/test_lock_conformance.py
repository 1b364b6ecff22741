"""What every ledger must do about locks, on every backend. Each test's docstring says what breaks if it
fails."""

from __future__ import annotations

import asyncio
import itertools

import asyncpg
import pytest

from undoubt.coordinator.errors import SessionLost
from undoubt.coordinator.ledger.contract import Session
from undoubt.coordinator.ledger.locks import (
    LOCK_NAME_CHARACTERS_MAX,
    LockEntry,
    LockInfo,
    LockRequest,
)
from undoubt.participants.errors import UsageError

from .conftest import Backend, Etcd, Memory, Postgres, Raft, Sqlite
from .signing import Signing

_numbers = itertools.count(1)


def request(session: Session, name: str = "job", *, shared: bool = False) -> LockRequest:
    return LockRequest(name, session.id, session.nonce, next(_numbers), shared, session.txid(1))


async def opened(ledger: Signing, ttl_s: float = 600.0) -> Session:
    return await ledger.open_session("test", ttl_s)


async def held(ledger: Signing, asked: LockRequest) -> LockEntry:
    entry = await ledger.lock(asked, wait=True)
    assert isinstance(entry, LockEntry)
    assert entry.granted
    return entry


async def waiting(ledger: Signing, asked: LockRequest) -> LockRequest:
    entry = await ledger.lock(asked, wait=True)
    assert entry is not None
    assert not entry.granted
    return asked


async def granted(ledger: Signing, asked: LockRequest) -> bool:
    entry = await ledger.lock_entry(asked)
    return entry is not None and entry.granted


async def all_locks(ledger: Signing) -> list[LockInfo]:
    return list(await ledger.locks())


async def test_one_holder_and_then_the_next_in_the_order_of_asking(ledger: Signing) -> None:
    """Two holders at once, or a waiter that is passed over for ever."""
    one, other = await opened(ledger), await opened(ledger)
    first = request(one)
    entry = await held(ledger, first)
    second = await waiting(ledger, request(other))
    third = await waiting(ledger, request(one))
    assert await ledger.lock(request(other), wait=False) is None
    [info] = await all_locks(ledger)
    assert [each.request.number for each in info.entries] == [first.number, second.number, third.number]
    assert info.holders[0].request.txid == one.txid(1)
    assert await ledger.unlock(first) is True
    assert (await granted(ledger, second), await granted(ledger, third)) == (True, False)
    assert (found := await ledger.lock_entry(second)) is not None
    assert found.token > entry.token
    assert await ledger.unlock(second) is True
    assert await granted(ledger, third)
    assert await ledger.unlock(third) is True
    assert await all_locks(ledger) == []


async def test_the_locks_for_which_a_request_waits(ledger: Signing) -> None:
    """The detector of deadlocks sees no other: a cycle through one that is left out is never ended."""
    one, other = await opened(ledger), await opened(ledger)
    for name in ("c", "b", "a"):
        await held(ledger, request(one, name))
    shared = [await held(ledger, request(session, "d", shared=True)) for session in (one, other)]
    behind = [await waiting(ledger, request(other, name)) for name in ("c", "a")]
    assert [info.name for info in await ledger.contended_locks()] == ["a", "c"]
    for info in await ledger.contended_locks():
        assert [len(info.holders), len(info.waiters)] == [1, 1]
        assert info.waiters[0].request.txid == other.txid(1)
    await waiting(ledger, request(other, "d"))
    assert [info.name for info in await ledger.contended_locks()] == ["a", "c", "d"]
    await ledger.close_session(other)
    assert list(await ledger.contended_locks()) == []
    assert len(shared) == len(behind) == 2


async def test_a_repeated_request_is_one_request(ledger: Signing) -> None:
    """A lost answer would leave a holder or a waiter behind that nobody ends."""
    session = await opened(ledger)
    asked = request(session)
    entry = await held(ledger, asked)
    assert await held(ledger, asked) == entry
    assert (await ledger.lock_entry(asked)) == entry
    behind = await waiting(ledger, request(session))
    await waiting(ledger, behind)
    assert [await ledger.unlock(asked), await ledger.unlock(asked)] == [True, False]
    assert [await ledger.unlock(behind), await ledger.unlock(behind)] == [True, False]
    assert await ledger.lock_entry(asked) is None
    assert await all_locks(ledger) == []


async def test_a_waiter_that_gives_up_holds_up_nobody(ledger: Signing) -> None:
    session = await opened(ledger)
    first = request(session)
    await held(ledger, first)
    second, third = request(session), request(session)
    await waiting(ledger, second)
    await waiting(ledger, third)
    assert await ledger.unlock(second)
    assert await ledger.unlock(first)
    assert await granted(ledger, third)


async def test_shared_holders_share_and_no_writer_starves(ledger: Signing) -> None:
    """Readers that exclude each other; a writer among them; readers that pass a writer that waits."""
    session = await opened(ledger)
    readers = [request(session, shared=True) for _ in range(2)]
    entries = [await held(ledger, reader) for reader in readers]
    assert entries[1].token > entries[0].token
    assert {entry.fence for entry in entries} == {entries[0].token}
    writer = await waiting(ledger, request(session))
    late = [request(session, shared=True) for _ in range(2)]
    assert await ledger.lock(request(session, shared=True), wait=False) is None
    for reader in late:
        await waiting(ledger, reader)
    await ledger.unlock(readers[0])
    assert not await granted(ledger, writer)
    await ledger.unlock(readers[1])
    assert await granted(ledger, writer)
    assert not await granted(ledger, late[0])
    written = await ledger.lock_entry(writer)
    assert written is not None
    assert written.fence == written.token > entries[1].token
    await ledger.unlock(writer)
    found = [await ledger.lock_entry(reader) for reader in late]
    assert (
        [entry.fence for entry in found if entry is not None] == [found[0].token] * 2 if found[0] else False
    )


async def test_tokens_increase_over_locks_and_restarts(backend: Backend) -> None:
    """A resource that has seen a higher token would refuse its new holder, or accept its old one."""
    tokens = []
    for turn in range(3):
        session = await opened(backend.ledger)
        for name in ("a", "b", "a"):
            asked = request(session, name)
            tokens.append((await held(backend.ledger, asked)).token)
            await backend.ledger.unlock(asked)
        if backend.durable and turn < 2:
            await backend.reopen()
    assert tokens == sorted(set(tokens))


async def test_locks_outlive_a_restart_of_the_ledger(backend: Backend) -> None:
    """Who holds a lock would lose it although its session goes on. (The owner of a file ends with it.)"""
    session = await opened(backend.ledger)
    asked, behind = request(session), request(session)
    entry = await held(backend.ledger, asked)
    await waiting(backend.ledger, behind)
    if backend.durable:
        await backend.reopen()
    if type(backend) is Sqlite:
        assert await all_locks(backend.ledger) == []
        return
    assert await held(backend.ledger, asked) == entry
    await waiting(backend.ledger, behind)
    assert await backend.ledger.lock(request(session), wait=False) is None
    await backend.ledger.unlock(asked)
    assert await granted(backend.ledger, behind)


@pytest.mark.parametrize("ending", ["close", "expire"])
async def test_the_end_of_a_session_releases_and_nothing_before(backend: Backend, ending: str) -> None:
    """A holder that has died would hold for ever; one that lives would lose what it holds."""
    ledger = backend.ledger
    dying, living = await opened(ledger, 10.0), await opened(ledger, 1e6)
    lock, other = request(dying), request(dying, "other")
    first = await held(ledger, lock)
    await held(ledger, other)
    left = await waiting(ledger, request(dying))
    next_one, last = request(living), request(living)
    await waiting(ledger, next_one)
    await waiting(ledger, last)
    await backend.elapse(6.0)
    await ledger.keep_alive(dying, 1)
    await backend.elapse(6.0)
    assert not await granted(ledger, next_one)
    if ending == "close":
        await ledger.close_session(dying)
    else:
        await backend.elapse(11.0)
    assert await granted(ledger, next_one)
    assert await ledger.lock_entry(lock) is None
    assert await ledger.lock_entry(left) is None
    assert (await ledger.lock(request(living), wait=False)) is None
    assert (entry := await ledger.lock_entry(next_one)) is not None
    assert entry.token > first.token
    assert [info.name for info in await all_locks(ledger)] == ["job"]
    with pytest.raises(SessionLost):
        await ledger.lock(request(dying, "third"), wait=True)
    assert list(await ledger.session_locks(dying.id, dying.nonce)) == []
    assert await ledger.unlock(lock) is False
    await ledger.unlock(next_one)
    assert await granted(ledger, last)


async def test_nobody_but_the_session_asks_or_ends(ledger: Signing) -> None:
    """The number of a session is public; its nonce is part of its name."""
    session = await opened(ledger)
    asked = request(session)
    await held(ledger, asked)
    stranger = LockRequest("job", session.id, "f" * 16, asked.number)
    assert await ledger.unlock(stranger) is False
    assert await ledger.lock_entry(stranger) is None
    with pytest.raises(SessionLost):
        await ledger.lock(stranger, wait=True)
    assert list(await ledger.session_locks(session.id, "f" * 16)) == []
    assert await granted(ledger, asked)


async def test_a_wait_ends_with_the_grant_or_with_the_request(ledger: Signing) -> None:
    """A waiter would sleep on although it has the lock, or wait for what is gone."""
    session = await opened(ledger)
    first = request(session)
    await held(ledger, first)
    second, third = request(session), request(session)
    await waiting(ledger, second)
    await waiting(ledger, third)
    still = await ledger.lock_entry(second, wait_s=0.05)
    assert still is not None
    assert not still.granted
    waits = [asyncio.ensure_future(_ended_wait(ledger, each)) for each in (second, third)]
    await ledger.unlock(first)
    assert (entry := await waits[0]) is not None
    assert entry.granted
    await ledger.unlock(third)
    assert await waits[1] is None
    await ledger.unlock(second)


async def _ended_wait(ledger: Signing, asked: LockRequest) -> LockEntry | None:
    while True:
        entry: LockEntry | None = await ledger.lock_entry(asked, wait_s=5.0)
        if entry is None or entry.granted:
            return entry


async def test_an_operator_revokes_one_grant(ledger: Signing) -> None:
    """``locks release`` would end another holder than the one that was shown."""
    session = await opened(ledger)
    asked, behind = request(session), request(session)
    entry = await held(ledger, asked)
    await waiting(ledger, behind)
    assert await ledger.revoke_lock("job", entry.token + 7) is False
    assert await ledger.revoke_lock("jobs", entry.token) is False
    assert await ledger.revoke_lock("job", entry.token) is True
    assert await ledger.revoke_lock("job", entry.token) is False
    assert await granted(ledger, behind)
    assert await ledger.lock_entry(asked) is None


async def test_locks_come_in_pages_and_by_session(ledger: Signing) -> None:
    one, other = await opened(ledger), await opened(ledger)
    names = ["ä", "Z", "a", "a b", "b", "c"]
    requests = [request(one if name < "b" else other, name) for name in names]
    for asked in requests:
        await held(ledger, asked)
    await waiting(ledger, request(other, "Z"))
    seen: list[str] = []
    while page := await ledger.locks(after=seen[-1] if seen else "", limit=2):
        assert len(page) <= 2
        seen += [info.name for info in page]
    assert seen == sorted(names)
    mine = await ledger.session_locks(other.id, other.nonce)
    assert [entry.request.name for entry in mine] == ["Z", "b", "c", "ä"]
    assert [entry.granted for entry in mine] == [False, True, True, True]
    for limit in (0, 1_001):
        with pytest.raises(UsageError):
            await ledger.locks(limit=limit)


@pytest.mark.parametrize("name", ["", "a\0b", "line\nfeed", "\ud800", "n" * (LOCK_NAME_CHARACTERS_MAX + 1)])
async def test_a_name_out_of_bounds_is_refused(ledger: Signing, name: str) -> None:
    session = await opened(ledger)
    with pytest.raises(UsageError):
        await ledger.lock(request(session, name), wait=True)
    with pytest.raises(UsageError):
        await ledger.revoke_lock(name, 1)
    assert (await held(ledger, request(session, "n" * LOCK_NAME_CHARACTERS_MAX))).granted


async def test_too_many_requests_are_refused_to_who_asks(
    ledger: Signing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One session, or one name, would fill the ledger of all."""
    for module in ("lock_queue", "postgres.locks", "etcd.locks"):
        monkeypatch.setattr(f"undoubt.coordinator.ledger.{module}.LOCK_REQUESTS_MAX", 3)
        monkeypatch.setattr(f"undoubt.coordinator.ledger.{module}.SESSION_REQUESTS_MAX", 5)
    one, other = await opened(ledger), await opened(ledger)
    asked = [request(one) for _ in range(3)]
    for each in asked:
        await ledger.lock(each, wait=True)
    with pytest.raises(UsageError, match="'job' has 3 requests"):
        await ledger.lock(request(other), wait=True)
    await ledger.lock(asked[2], wait=True)
    for name in ("a", "b"):
        await held(ledger, request(one, name))
    with pytest.raises(UsageError, match=f"session {one.id} has 5 requests"):
        await ledger.lock(request(one, "c"), wait=True)
    await held(ledger, request(other, "c"))
    await ledger.unlock(asked[0])
    await held(ledger, request(one, "d"))


async def test_many_at_once_get_it_one_after_the_other(ledger: Signing) -> None:
    """Grants that race each other: two at once, or tokens that do not increase in the order of the grants."""
    sessions = [await opened(ledger) for _ in range(4)]
    inside: list[int] = []
    tokens: list[int] = []

    async def work(session: Session) -> None:
        for _ in range(4):
            asked = request(session)
            entry = await ledger.lock(asked, wait=True)
            if entry is None or not entry.granted:
                entry = await _ended_wait(ledger, asked)
            assert entry is not None
            inside.append(asked.number)
            assert len(inside) == 1
            tokens.append(entry.token)
            await asyncio.sleep(0)
            inside.remove(asked.number)
            assert await ledger.unlock(asked)

    await asyncio.gather(*map(work, sessions))
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 16
    assert await all_locks(ledger) == []


async def test_a_new_incarnation_ends_all_and_begins_above(backend: Backend) -> None:
    """A restored ledger would issue tokens again that resources have seen."""
    ledger = backend.ledger
    session = await opened(ledger)
    asked = request(session)
    entry = await held(ledger, asked)
    await waiting(ledger, request(session))
    await begin_incarnation(backend)
    assert await all_locks(ledger) == []
    with pytest.raises(SessionLost):
        await ledger.lock(request(session), wait=True)
    again = await held(ledger, request(await opened(ledger)))
    assert again.token > entry.token + 1_000_000_000 - 1


async def begin_incarnation(backend: Backend) -> None:
    if isinstance(backend, Postgres):
        connection = await asyncpg.connect(backend.dsn)
        await connection.execute("update undoubt_ledger.ledger set timeline = 'elsewhere'")
        await connection.close()
    elif isinstance(backend, Memory):
        await backend.memory.begin_incarnation("a test")
    elif isinstance(backend, Sqlite):
        assert backend.owner.owned is not None
        await backend.owner.owned.begin_incarnation("a test")
    elif isinstance(backend, Etcd):
        await backend.opened.begin_incarnation("a test")
    else:
        assert isinstance(backend, Raft)
        [node] = [node for node in backend.cluster.nodes.values() if node.leads]
        await node.ledger.begin_incarnation("a test")
