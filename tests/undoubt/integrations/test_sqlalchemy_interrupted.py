"""A session's commit is interrupted in its thread or task, and goes on: the exception says so."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.undoubt.integrations.conftest import App, World
from tests.undoubt.integrations.test_sqlalchemy import both
from undoubt import OutcomeUnknown
from undoubt.coordinator.errors import CoordinatorClosed
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.coordinator.transaction import Transaction
from undoubt.integrations.sqlalchemy import Session
from undoubt.integrations.sqlalchemy.sync_bridge import Bridge


class TimeLimit(BaseException):
    pass


class Interruption:
    """At a step of the commit it interrupts the caller, and holds the commit until ``heard``."""

    def __init__(self, world: World, kind: type[BaseException]) -> None:
        self.heard = threading.Event()
        self._thread = 0
        self._task: asyncio.Task[Any] | None = None
        self._kind = kind
        self._struck = False
        world.at_step = self._at_step
        self._world = world

    def here(self) -> None:
        """The caller to interrupt is this thread or task."""
        self._thread = threading.get_ident()
        if not self._world.kind.startswith("sync"):
            self._task = asyncio.current_task()

    async def _at_step(self, step: str, _: str) -> None:
        if step != "before_decide" or self._struck:
            return
        self._struck = True
        if self._task is not None:
            self._task.cancel()
        else:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread), ctypes.py_object(self._kind)
            )
        while not self.heard.is_set():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("door", ["commit", "begin"])
@pytest.mark.parametrize("kind", [TimeLimit, KeyboardInterrupt])
async def test_a_commit_that_goes_on_is_noted(
    app: App, world: World, door: str, kind: type[BaseException]
) -> None:
    """Broken if the exception looks like one of the application's own, after which nothing was committed."""
    interruption = Interruption(world, kind)
    seen: list[Any] = []

    def program(session: Session) -> None:
        interruption.here()
        try:
            if door == "begin":
                with session.begin():
                    session.add_all(both(1))
            else:
                session.add_all(both(1))
                session.commit()
        except BaseException as error:
            seen.extend((error, session.undoubt_txid, session.undoubt_may_have_committed))
            raise
        finally:
            interruption.heard.set()

    with pytest.raises((kind, asyncio.CancelledError)):
        await app.run(program)
    error, txid, may_have = seen
    assert may_have
    [note] = error.__notes__
    assert f"the commit of transaction {txid} goes on" in note
    while (await app.outcome(txid)) is not RecordedDecision.COMMIT:
        await asyncio.sleep(0.01)
    world.at_step = None
    while await world.ids() != ({1}, {1}):
        await asyncio.sleep(0.01)
    await app.run(lambda session: (session.add_all(both(2)), session.commit()))


async def test_a_session_names_its_transaction(app: App, world: World) -> None:
    """Broken if a program cannot ask for the outcome of a commit that it gave up on."""
    seen: list[Any] = []

    def program(session: Session) -> None:
        seen.append((session.undoubt_txid, session.undoubt_may_have_committed))
        session.add_all(both(1))
        session.flush()
        seen.append((session.undoubt_txid, session.undoubt_may_have_committed))
        session.commit()
        seen.append((session.undoubt_txid, session.undoubt_may_have_committed))

    await app.run(program)
    before, within, after = seen
    assert before == (None, False)
    assert within == (after[0], False)
    assert after[1]
    assert await app.outcome(after[0]) is RecordedDecision.COMMIT


def next_call(monkeypatch: pytest.MonkeyPatch, instead: Callable[..., None]) -> None:
    """The next call of a session into the engine is ``instead``, with the real one as its first argument."""
    call = Bridge.call

    def once(bridge: Bridge, *arguments: Any) -> None:
        monkeypatch.setattr(Bridge, "call", call)
        instead(partial(call, bridge), *arguments)

    monkeypatch.setattr(Bridge, "call", once)


async def test_a_commit_that_was_never_asked_for_is_rolled_back(
    app: App, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if an exception just before the call leaves the branches, with their locks, to the timeout."""

    def interrupted(*_: Any) -> None:
        raise TimeLimit

    def program(session: Session) -> None:
        session.add_all(both(1))
        session.flush()
        next_call(monkeypatch, interrupted)
        with pytest.raises(TimeLimit) as raised:
            session.commit()
        assert not getattr(raised.value, "__notes__", [])
        assert not session.undoubt_may_have_committed
        session.rollback()
        session.add_all(both(2))
        session.commit()

    await app.run(program)
    assert await world.ids() == ({2}, {2})


async def test_a_coordinator_that_is_closed_during_the_commit(
    app: App, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if the caller hears that the coordinator is closed, and not that the outcome is unknown."""
    commits: list[asyncio.Task[Any]] = []

    async def begin_to_commit(transaction: Transaction) -> None:
        commits.append(asyncio.create_task(transaction.commit()))
        while not transaction.committing:
            await asyncio.sleep(0)

    def closed(call: Any, _: Any, transaction: Transaction) -> None:
        call(begin_to_commit, transaction)
        raise CoordinatorClosed

    def program(session: Session) -> None:
        session.add_all(both(1))
        session.flush()
        next_call(monkeypatch, closed)
        with pytest.raises(OutcomeUnknown) as raised:
            session.commit()
        assert raised.value.txid == session.undoubt_txid

    await app.run(program)
    while not commits[0].done():
        await asyncio.sleep(0.01)
