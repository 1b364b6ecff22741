"""How a coordinator ends: by close, by Ctrl-C, with its interpreter, and not with a fork."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT
from tests.undoubt.sync.support import WAIT_S, Background, Gate, Stage, until
from undoubt.coordinator.errors import CoordinatorClosed, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.participants.contract import XactStatus
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Protocol
from undoubt.sync import Coordinator
from undoubt.sync.portal import Portal


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


def test_close_aborts_what_has_not_begun_to_commit(stage: Stage) -> None:
    """Broken if a thread could go on with a transaction that nobody will end, or is told something else."""
    begun, closed = threading.Event(), threading.Event()

    def body() -> None:
        with stage.coordinator.transaction() as tx:
            tx.branch("alpha")
            begun.set()
            closed.wait(WAIT_S)
            with pytest.raises(TransactionAborted, match="coordinator was closed"):
                tx.branch("beta")

    ended = Background(body)
    assert begun.wait(WAIT_S)
    stage.coordinator.close()
    closed.set()
    with pytest.raises(TransactionAborted, match="coordinator was closed"):
        ended.ended()
    assert stage.xact_statuses() == {XactStatus.ABORTED}


def test_close_waits_for_what_commits(stage: Stage) -> None:
    """Broken if close leaves an acknowledged decision to recovery without need."""
    gate = stage.gate("commit beta")
    tx = stage.coordinator.transaction().start()
    tx.branch("alpha")
    tx.branch("beta")
    committed = Background(tx.commit)
    gate.wait()
    closed = Background(stage.coordinator.close)
    closed.join(0.05)
    assert closed.is_alive()
    gate.open.set()
    closed.ended()
    assert committed.ended().pending == ()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


def test_a_commit_that_close_leaves_behind_is_unknown() -> None:
    """Broken if the committing thread is told "closed", as if nothing had happened, or waits for ever."""
    stage = Stage(drain_s=0.01)
    gate = stage.gate("prepare beta")
    tx = stage.coordinator.transaction().start()
    tx.branch("alpha")
    tx.branch("beta")
    committed = Background(tx.commit)
    gate.wait()
    stage.coordinator.close()
    with pytest.raises(OutcomeUnknown):
        committed.ended()


def test_a_closed_coordinator_refuses(stage: Stage) -> None:
    tx = stage.coordinator.transaction()
    stage.coordinator.close()
    stage.coordinator.close()
    with pytest.raises(UsageError, match="closed"):
        stage.coordinator.transaction()
    with pytest.raises(UsageError, match="closed"):
        tx.start()


def test_calls_do_not_outlive_the_loop() -> None:
    """Broken if a thread waits for ever because it called while the loop was being ended."""
    for _ in range(50):
        portal = Portal("tests", lambda: None)
        started = threading.Barrier(5)

        def calls(portal: Portal = portal, started: threading.Barrier = started) -> None:
            started.wait(WAIT_S)
            with pytest.raises(CoordinatorClosed):
                while True:
                    portal.call(nothing)

        callers = [Background(calls) for _ in range(4)]
        started.wait(WAIT_S)
        portal.close()
        for caller in callers:
            caller.ended()


def test_a_call_that_comes_too_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interleaving: the call was allowed, then the loop ended, then the call was sent."""
    portal = Portal("tests", lambda: None)
    portal.close()
    monkeypatch.setattr(portal, "check", lambda: None)
    with pytest.raises(CoordinatorClosed):
        Background(lambda: portal.call(nothing)).ended()


async def nothing() -> None:
    pass


def test_an_opening_that_fails_ends_the_thread() -> None:
    """Broken if every failed attempt to connect leaves a thread behind."""
    before = threading.active_count()

    def opening() -> Any:
        raise ValueError("no such ledger")

    with pytest.raises(ValueError, match="no such ledger"):
        Coordinator(opening)
    assert threading.active_count() == before


def interrupt_main_thread() -> None:
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGINT)


def test_ctrl_c_does_not_stop_a_commit(stage: Stage) -> None:
    """The interleaving: PREPARE is on its way, the thread is interrupted, and nobody waits any more. Broken
    if a branch stays prepared, or the block's end rolls back what is being committed."""
    gate = stage.gate("prepare beta")

    def interrupt() -> None:
        gate.wait()
        interrupt_main_thread()

    interrupting = Background(interrupt)
    with pytest.raises(KeyboardInterrupt) as caught, stage.coordinator.transaction() as tx:
        tx.branch("alpha")
        tx.branch("beta")
        tx.commit()
    interrupting.ended()
    [note] = caught.value.__notes__
    assert f"the commit of transaction {tx.id} goes on" in note
    assert stage.coordinator.outcome(tx.id) is RecordedDecision.NOT_RECORDED
    gate.open.set()
    until(lambda: stage.coordinator.outcome(tx.id) is RecordedDecision.COMMIT)
    stage.coordinator.close()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


def test_ctrl_c_in_the_body_rolls_back(stage: Stage) -> None:
    """Broken if a thread that gave up waiting for a branch leaves it open until the timeout."""
    gate = stage.gate("begin beta")

    def interrupt() -> None:
        gate.wait()
        interrupt_main_thread()
        gate.open.set()

    interrupting = Background(interrupt)
    with pytest.raises(KeyboardInterrupt), stage.coordinator.transaction() as tx:
        tx.branch("alpha")
        tx.branch("beta")
    interrupting.ended()
    assert not tx.active
    stage.coordinator.close()
    assert stage.xact_statuses() == {XactStatus.ABORTED}


def test_ctrl_c_while_it_begins(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a transaction that nobody has in hand stays open until its timeout."""
    assert stage.engine is not None
    gate, new_txid = Gate(), stage.engine.new_txid

    async def held(protocol: Protocol, timeout_s: float, agent: str) -> Any:
        await gate.stop()
        return await new_txid(protocol, timeout_s, agent)

    def interrupt() -> None:
        gate.wait()
        interrupt_main_thread()

    monkeypatch.setattr(stage.engine, "new_txid", held)
    interrupting = Background(interrupt)
    tx = stage.coordinator.transaction()
    with pytest.raises(KeyboardInterrupt):
        tx.start()
    interrupting.ended()
    gate.open.set()
    until(lambda: tx._engine._txid is not None and not tx.active)


def run(program: str, folder: Path) -> str:
    """What the program of that name prints. It must end by itself."""
    python = [sys.executable, "-W", "ignore::DeprecationWarning"]  # of os.fork beside threads
    ended = subprocess.run(
        [*python, "-m", "tests.undoubt.sync.programs", program, str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_the_interpreter_ends_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    """The interleaving: both branches are prepared, the decision is not recorded, and the main thread ends.
    Broken if the engine loses its ledger then, or the process hangs."""
    assert run("exits", tmp_path).splitlines() == [
        "committing",
        "decided commit",
        "committed {'alpha', 'beta'}",
    ]


def test_a_fork_is_refused_and_harmless(tmp_path: Path) -> None:
    """Broken if the child hangs in a call, or at its exit, or ends what is its parent's."""
    assert run("forks", tmp_path).splitlines() == ["child WrongProcess", "child ended 0", "parent commit"]
