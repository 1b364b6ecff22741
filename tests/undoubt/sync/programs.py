"""Programs whose ends are tested: ``python -m tests.undoubt.sync.programs NAME FOLDER``."""

from __future__ import annotations

import asyncio
import enum
import os
import sys
import threading
from pathlib import Path

import undoubt.sync
from undoubt.coordinator.errors import LockLost
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import Gid
from undoubt.participants.scripted import ScriptedParticipant


def connected(
    folder: str, *participants: ScriptedParticipant, observe: object = None, session_ttl_s: float = 10.0
) -> undoubt.sync.Coordinator:
    settings = {
        "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
        "coordinator": {"session_ttl_s": session_ttl_s},
    }
    coordinator = undoubt.sync.connect(settings, observe=observe, recover=False)  # type: ignore[arg-type]
    for participant in participants:
        coordinator.add_participant(participant)
    return coordinator


def exits(folder: str) -> None:
    """A thread commits, and the main thread ends before the last vote."""
    voting, exiting = threading.Event(), threading.Event()
    threading._register_atexit(exiting.set)  # type: ignore[attr-defined]
    committed = set()

    async def before(call: str, gid: Gid) -> None:
        if call == "commit":
            committed.add(gid.participant)
            if len(committed) == 2:
                print("committed", str(sorted(committed)).replace("[", "{").replace("]", "}"))
        if (call, gid.participant) == ("prepare", "beta"):
            voting.set()
            while not exiting.is_set():
                await asyncio.sleep(0.001)

    def observe(step: enum.StrEnum, _: str) -> None:
        if step is TwoPhaseStep.AFTER_DECIDE:
            print("decided commit")

    coordinator = connected(
        folder, *(ScriptedParticipant(name, before=before) for name in ("alpha", "beta")), observe=observe
    )

    def work() -> None:
        with coordinator.transaction() as tx:
            tx.branch("alpha")
            tx.branch("beta")

    threading.Thread(target=work, daemon=True).start()
    voting.wait()
    print("committing")


def forks(folder: str) -> None:
    """A child that uses, and closes, its parent's coordinator."""
    coordinator = connected(folder, ScriptedParticipant("alpha"), ScriptedParticipant("beta"))
    pid = os.fork()
    if pid == 0:
        try:
            coordinator.transaction()
        except UndoubtError as error:
            print("child", type(error).__name__, flush=True)
        coordinator.close()
        sys.exit(0)  # as a child that knows nothing ends: with all its exit hooks
    _, status = os.waitpid(pid, 0)
    print("child ended", os.waitstatus_to_exitcode(status))
    with coordinator.transaction() as tx:
        tx.branch("alpha")
        tx.branch("beta")
    print("parent", coordinator.outcome(tx.id))


def forks_in_a_branch(folder: str) -> None:
    """A child that ends while its parent has a branch open in a real database; ``folder`` has the dsn."""
    dsn = (Path(folder) / "dsn").read_text()
    settings = {"ledger": {"url": f"sqlite:///{folder}/ledger.db"}, "participants": {"orders": {"dsn": dsn}}}
    with undoubt.sync.connect(settings) as coordinator, coordinator.transaction() as tx:
        orders = tx.branch("orders")
        orders.execute("create table mark (id int)")
        pid = os.fork()
        if pid == 0:
            try:
                tx.branch("orders")
            except UndoubtError as error:
                print("child", type(error).__name__, flush=True)
            sys.exit(0)
        os.waitpid(pid, 0)
        orders.execute("insert into mark values (1)")
        tx.commit()
        print("parent", coordinator.outcome(tx.id))


def holds(folder: str) -> None:
    """Holds a lock until it reads a line; prints its token, and whether the lock was lost."""
    with connected(folder, session_ttl_s=5.0) as coordinator:
        try:
            with coordinator.lock("job") as lock:
                print(lock.token, flush=True)
                sys.stdin.readline()
        except LockLost:
            print("lost", flush=True)
        else:
            print("held", flush=True)


PROGRAMS = {"exits": exits, "forks": forks, "forks_in_a_branch": forks_in_a_branch, "holds": holds}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2])
