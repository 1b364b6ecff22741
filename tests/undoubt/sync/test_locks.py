"""Locks as threads use them: over a ledger of their own, and over that of another process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

import undoubt.sync
from tests.docs.pages import ROOT
from tests.undoubt.sync.programs import connected
from tests.undoubt.sync.support import WAIT_S, Background, Stage, until
from undoubt.coordinator.errors import CoordinatorClosed, LedgerUnavailable, LockLost, LockTimeout
from undoubt.coordinator.ledger.locks import LockInfo
from undoubt.participants.errors import StaleLock, UsageError
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings
from undoubt.sync.lock import Lock
from undoubt.sync.portal import Portal


class TimeLimit(Exception):
    pass


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


def queue(of: Stage | undoubt.sync.Coordinator) -> list[bool]:
    """Of each request for the lock ``job`` whether it is granted."""
    coordinator = of.coordinator if isinstance(of, Stage) else of

    async def ask() -> list[LockInfo]:
        return list(await coordinator.engine.ledger.locks())

    infos = coordinator.portal.call(ask)
    return [entry.granted for info in infos if info.name == "job" for entry in info.entries]


def revoke(coordinator: undoubt.sync.Coordinator, lock: Lock) -> None:
    """What ``undoubt locks release`` does."""
    assert coordinator.portal.call(coordinator.engine.ledger.revoke_lock, lock.name, lock.token)


def test_the_block_has_the_lock_and_gives_it_back(stage: Stage) -> None:
    with stage.coordinator.lock("job", timeout=10) as lock:
        assert (lock.name, lock.held, queue(stage)) == ("job", True, [True])
        lock.check()
        token = lock.token
    assert (lock.held, queue(stage)) == (False, [])
    with pytest.raises(UsageError, match="not acquired"):
        lock.token  # noqa: B018 - it raises
    with pytest.raises(ZeroDivisionError), stage.coordinator.lock("job") as after:
        assert after.token > token
        raise ZeroDivisionError
    assert queue(stage) == []


def test_a_second_thread_waits_for_the_first(stage: Stage) -> None:
    """Two threads in the work that the lock protects."""
    first = stage.coordinator.lock("job").acquire()
    second = stage.coordinator.lock("job")
    waiting = Background(second.acquire)
    until(lambda: queue(stage) == [True, False])
    token = first.token
    first.release()
    assert waiting.ended() is second
    assert second.token > token
    second.release()


def test_the_longest_waiting_thread_is_next(stage: Stage) -> None:
    """A thread could wait for ever while others come and go."""
    holder = stage.coordinator.lock("job").acquire()
    got: list[int] = []

    def take(number: int) -> None:
        with stage.coordinator.lock("job"):
            got.append(number)

    def queued(count: int) -> bool:
        return len(queue(stage)) == count

    threads = []
    for number in range(4):
        threads.append(Background(partial(take, number)))
        until(partial(queued, number + 2))
    holder.release()
    for thread in threads:
        thread.ended()
    assert got == [0, 1, 2, 3]


def test_try_does_not_wait(stage: Stage) -> None:
    holder, other = stage.coordinator.lock("job"), stage.coordinator.lock("job")
    assert holder.try_acquire() is True
    assert other.try_acquire() is False
    assert queue(stage) == [True]
    holder.release()
    assert other.try_acquire() is True
    with pytest.raises(UsageError, match="acquired already"):
        other.try_acquire()
    other.release()


def test_a_timed_wait_ends_and_leaves_the_queue(stage: Stage) -> None:
    """A request that nobody waits for any more would get the lock, and keep it."""
    with stage.coordinator.lock("job"):
        other = stage.coordinator.lock("job", timeout=0.05)
        with pytest.raises(LockTimeout, match="'job' was not granted within"):
            other.acquire()
        assert queue(stage) == [True]
        with pytest.raises(LockTimeout), other:
            raise AssertionError("the block was entered")
    assert queue(stage) == []


def test_shared_holders_exclude_an_exclusive_one(stage: Stage) -> None:
    one, two = (stage.coordinator.lock("job", shared=True) for _ in range(2))
    exclusive, late = stage.coordinator.lock("job"), stage.coordinator.lock("job", shared=True)
    with one, two:
        assert one.token != two.token
        waiting = Background(exclusive.acquire)
        until(lambda: queue(stage) == [True, True, False])
        assert late.try_acquire() is False  # or readers would keep a writer out for ever
    waiting.ended()
    assert late.try_acquire() is False
    exclusive.release()
    assert late.try_acquire() is True
    late.release()


def test_a_lock_that_an_operator_has_released_is_told(stage: Stage) -> None:
    with pytest.raises(LockLost, match="released"), stage.coordinator.lock("job") as lock:
        revoke(stage.coordinator, lock)
        until(lambda: not lock.held)
        with pytest.raises(LockLost):
            lock.check()


def test_close_gives_the_locks_back_and_ends_the_wait(stage: Stage) -> None:
    """The next process would wait until the session has expired, and a thread for ever."""
    stage.coordinator.lock("job").acquire()
    waiting = Background(stage.coordinator.lock("job").acquire)
    until(lambda: queue(stage) == [True, False])
    stage.coordinator.close()
    with pytest.raises(CoordinatorClosed):
        waiting.ended()
    assert asyncio.run(stage.ledger.locks()) == []


# Interruptions.


@pytest.fixture
def handle() -> Iterator[Callable[[type[BaseException]], None]]:
    """Has the handler of SIGUSR1 raise."""
    before = signal.getsignal(signal.SIGUSR1)

    def install(kind: type[BaseException]) -> None:
        def handler(*_: object) -> None:
            raise kind

        signal.signal(signal.SIGUSR1, handler)

    yield install
    signal.signal(signal.SIGUSR1, before)


def strike_when(condition: Callable[[], bool]) -> Background:
    def strike() -> None:
        until(condition)
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGUSR1)

    return Background(strike)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TimeLimit])
@pytest.mark.parametrize("timeout", [None, 1000.0])
def test_an_interrupted_wait_leaves_the_queue(
    stage: Stage, handle: Any, kind: type[BaseException], timeout: float | None
) -> None:
    """The lock would be granted to a thread that has gone on, and nobody would release it."""
    handle(kind)
    with stage.coordinator.lock("job"):
        other = stage.coordinator.lock("job", timeout=timeout)
        striking = strike_when(lambda: queue(stage) == [True, False])
        with pytest.raises(kind), other:
            raise AssertionError("the block was entered")
        striking.ended()
        until(lambda: queue(stage) == [True])
    until(lambda: queue(stage) == [])
    assert other.acquire().held  # it is of use again
    other.release()


def test_a_grant_that_comes_with_the_interruption_is_given_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread never learns that it has the lock."""
    call = Portal.call

    def interrupted(portal: Portal, function: Any, *arguments: Any) -> Any:
        monkeypatch.setattr(Portal, "call", call)
        call(portal, function, *arguments)
        raise KeyboardInterrupt

    lock = stage.coordinator.lock("job")
    monkeypatch.setattr(Portal, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lock.acquire()
    until(lambda: queue(stage) == [])
    assert stage.coordinator.lock("job").try_acquire()


# Over another process, and a real database.


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lock ``job``, and its token."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.undoubt.sync.programs", "holds", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


@pytest.mark.parametrize("owner", ["this process", "the holder"])
def test_the_death_of_the_holder_gives_the_lock_away(tmp_path: Path, owner: str) -> None:
    """Not before its session has ended, whichever of both owns the ledger's file; then to the one that
    waits, with a higher token."""
    with contextlib.ExitStack() as stack:
        if owner == "this process":
            ours = stack.enter_context(connected(str(tmp_path)))
            process, token = stack.enter_context(holding(tmp_path))
        else:
            process, token = stack.enter_context(holding(tmp_path))
            ours = stack.enter_context(connected(str(tmp_path)))
        lock = ours.lock("job")
        assert lock.try_acquire() is False
        waiting = Background(lock.acquire)
        until(lambda: queue(ours) == [True, False])
        process.send_signal(signal.SIGKILL)
        waiting.ended()
        assert lock.token > token
        lock.release()


def ended(process: subprocess.Popen[str]) -> str:
    """What a holder says at the end of its block."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_stopped_holder_hears_at_the_end_of_its_block(tmp_path: Path) -> None:
    """It would take for protected what it has done beside the next holder."""
    with connected(str(tmp_path)) as ours:
        with holding(tmp_path) as (process, _):
            process.send_signal(signal.SIGSTOP)
            with ours.lock("job"):
                process.send_signal(signal.SIGCONT)
                assert ended(process) == "lost"
        with holding(tmp_path) as (next_holder, _):
            assert ended(next_holder) == "held"


def test_a_request_outlasts_a_ledger_that_does_not_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A candidate for leadership would fail with the first outage of the ledger; and a request with a timeout
    would wait for longer."""
    caplog.set_level(logging.DEBUG, "undoubt.coordinator.locks")
    with holding(tmp_path) as (owner, _), connected(str(tmp_path)) as ours:
        owner.send_signal(signal.SIGSTOP)
        lock = ours.lock("another")
        waiting = Background(lock.acquire)
        with pytest.raises(LockTimeout, match="the ledger does not answer") as late:
            ours.lock("a third", timeout=0).acquire()
        assert isinstance(late.value.__cause__, LedgerUnavailable)
        until(lambda: "lock 'another': no answer from the owner" in caplog.text)
        owner.send_signal(signal.SIGCONT)
        assert waiting.ended() is lock
        lock.release()


def test_a_stopped_holder_loses_the_lock_and_its_writes(database: str, tmp_path: Path) -> None:
    """Broken if a stale holder's transaction commits: its database has seen the next holder's token."""
    asyncio.run(migrate("orders", ParticipantSettings(dsn=database)))
    settings = {
        "ledger": {"url": f"sqlite:///{tmp_path}/ledger.db"},
        "participants": {"orders": {"dsn": database}},
    }
    with undoubt.sync.connect(settings) as coordinator:
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute("create table report (holder text)")
        stale = coordinator.lock("job").acquire()
        token = stale.token
        revoke(coordinator, stale)
        with coordinator.lock("job") as lock, coordinator.transaction() as tx:
            orders = tx.branch("orders")
            lock.guard(orders)
            orders.execute("insert into report values ('the next')")
            assert lock.token > token
        with pytest.raises((StaleLock, LockLost)), coordinator.transaction() as tx:
            orders = tx.branch("orders")
            stale.guard(orders)
            orders.execute("insert into report values ('the stale')")
        with psycopg.connect(database) as admin:
            assert admin.execute("select holder from report").fetchall() == [("the next",)]
        with pytest.raises(UsageError, match="not the connection of a branch"):
            coordinator.lock("another").acquire().guard(object())
