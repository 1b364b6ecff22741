"""A signal's handler raises while a thread waits for the end of its transaction.

Celery's time limits, decorators over ``signal.alarm`` and Ctrl-C do so. The commit goes on: whoever hears of
the exception has to hear of that."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.undoubt.sync.support import WAIT_S, Background, Stage, until
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.participants.contract import XactStatus
from undoubt.sync.portal import Portal
from undoubt.sync.transaction import Transaction


class TimeLimit(Exception):
    pass


class Unusual(BaseException):
    pass


KINDS = (TimeLimit, Unusual, KeyboardInterrupt, SystemExit)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


@pytest.fixture
def handle() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Sets the handler of SIGUSR1."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, lambda *_: handler()) and None  # type: ignore[misc]
    signal.signal(signal.SIGUSR1, before)


def strike() -> None:
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGUSR1)


def ends(tx: Transaction, end: str) -> None:
    tx.branches("alpha", "beta")
    if end == "commit":
        tx.commit()


@pytest.mark.parametrize("end", ["commit", "block"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_that_goes_on_is_noted(
    stage: Stage, handle: Any, kind: type[BaseException], end: str
) -> None:
    """Broken if only Ctrl-C, or only a commit() of the application's own, is told that the commit goes on."""
    gate = stage.gate("prepare beta")

    def handler() -> None:
        raise kind

    def when_it_prepares() -> None:
        gate.wait()
        strike()

    handle(handler)
    striking = Background(when_it_prepares)
    with pytest.raises(kind) as caught, stage.coordinator.transaction() as tx:
        ends(tx, end)
    striking.ended()
    [note] = caught.value.__notes__
    assert f"the commit of transaction {tx.id} goes on" in note
    gate.open.set()
    until(lambda: stage.coordinator.outcome(tx.id) is RecordedDecision.COMMIT)
    stage.coordinator.close()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


def interrupted(monkeypatch: pytest.MonkeyPatch, before: Callable[..., None]) -> None:
    """The next call into the loop raises, after ``before``."""
    call = Portal.call

    def once(portal: Portal, function: Any, *arguments: Any) -> None:
        monkeypatch.setattr(Portal, "call", call)
        before(portal, function, *arguments)
        raise TimeLimit

    monkeypatch.setattr(Portal, "call", once)


@pytest.mark.parametrize("end", ["commit", "block"])
def test_a_commit_on_its_way_to_the_loop_is_noted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Broken if a commit that has been asked for, and begins after the exception, begins without a word."""
    busy, free = threading.Event(), threading.Event()

    async def block() -> None:
        busy.set()
        free.wait(WAIT_S)

    def send(portal: Portal, function: Any, *arguments: Any) -> None:
        portal.post(function, *arguments)
        free.set()

    with pytest.raises(TimeLimit) as caught, stage.coordinator.transaction() as tx:
        tx.branches("alpha", "beta")
        stage.coordinator.portal.post(block)
        assert busy.wait(WAIT_S)
        interrupted(monkeypatch, send)
        if end == "commit":
            tx.commit()
    [note] = caught.value.__notes__
    assert str(tx.id) in note
    stage.coordinator.close()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


def test_a_commit_that_was_never_asked_for_is_rolled_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if an exception just before the call leaves the branches, with their locks, to the timeout."""
    with pytest.raises(TimeLimit) as caught, stage.coordinator.transaction() as tx:
        tx.branches("alpha", "beta")
        interrupted(monkeypatch, lambda *_: None)
    assert not tx.active
    assert not getattr(caught.value, "__notes__", [])
    stage.coordinator.close()
    assert stage.xact_statuses() == {XactStatus.ABORTED}


def test_an_error_after_the_commit_is_noted(stage: Stage) -> None:
    """The block's error does not say that everything was rolled back, if it was committed before."""
    with pytest.raises(TimeLimit) as caught, stage.coordinator.transaction() as tx:
        ends(tx, "commit")
        raise TimeLimit
    assert caught.value.__notes__ == [f"transaction {tx.id} has committed"]


def test_an_interrupted_call_does_not_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if an exception before the loop was woken leaves it asleep for every call that follows."""
    loop = asyncio.SelectorEventLoop()
    wake = loop.call_soon_threadsafe

    def interrupted_once(*_: Any) -> None:
        monkeypatch.setattr(loop, "call_soon_threadsafe", wake)
        raise TimeLimit

    monkeypatch.setattr("undoubt.sync.portal._new_loop", lambda: loop)
    portal = Portal("test", lambda: None)
    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted_once)
    with pytest.raises(TimeLimit):
        portal.flush()
    Background(portal.flush).ended()
    portal.close()
