"""A process that takes one lock again and again, and writes under its token, for the proof of fencing.

Arguments: URL of the ledger, DSN of the database, name of the lock. It prints a line of JSON at each step. It
never looks whether it still has the lock: the database alone refuses it. It ends when its input is closed."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

from tests.prove.trap import tell
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import LedgerError, TransactionAborted
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.locks import Lock, branch_with
from undoubt.coordinator.settings import CoordinatorSettings, LedgerSettings
from undoubt.participants.contract import GuardingBranch
from undoubt.participants.errors import ParticipantError, StaleLock
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.registry import Registry
from undoubt.participants.settings import ParticipantSettings

TTL_S = 1.0
WRITES = 12
"""The transactions under one grant."""
PAUSE_S = 0.05

_ended = threading.Event()


def _wait_for_end() -> None:
    sys.stdin.read()
    _ended.set()


async def write(coordinator: Coordinator, lock: Lock, number: int) -> None:
    token = lock.token
    try:
        async with coordinator.transaction(timeout=30) as tx:
            orders = await tx.branch("orders")
            # Not lock.guard, which knows at some time that the lock is lost, and does not ask the database.
            branch = branch_with(coordinator.live.values(), orders)
            assert isinstance(branch, GuardingBranch)
            await branch.guard_lock(coordinator.ledger_id, lock.name, token)
            await orders.execute(
                "insert into applied (name, token, number) values ($1, $2, $3)", lock.name, token, number
            )
    except StaleLock:
        tell(stale=token, name=lock.name)
    except (TransactionAborted, ParticipantError, LedgerError) as error:
        tell(failed=token, name=lock.name, why=f"{type(error).__name__}: {error}")
    else:
        tell(applied=token, name=lock.name)


async def hold(coordinator: Coordinator, name: str) -> None:
    lock = coordinator.lock(name, timeout=60)
    asked_at = time.monotonic()
    await lock.acquire()
    tell(entered=lock.token, name=name, asked_at=asked_at, at=time.monotonic())
    for number in range(WRITES):
        await write(coordinator, lock, number)
        await asyncio.sleep(PAUSE_S)
    tell(leaving=lock.token, name=name, at=time.monotonic())
    await lock.release()
    tell(left=name)


async def main(url: str, dsn: str, name: str) -> None:
    threading.Thread(target=_wait_for_end, daemon=True).start()
    ledger = await open_ledger(LedgerSettings(url=url, request_timeout_s=30.0))
    participant = PostgresParticipant(
        "orders", ParticipantSettings(dsn=dsn, connections_max=4), ledger_id=ledger.ledger_id
    )
    registry = Registry()
    registry.add(participant)
    settings = CoordinatorSettings(session_ttl_s=TTL_S)
    async with Coordinator(ledger, registry, settings) as coordinator:
        while not _ended.is_set():
            try:
                await hold(coordinator, name)
            except (LedgerError, TransactionAborted, ParticipantError) as error:
                tell(trouble=f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.2)
    await participant.close()
    await ledger.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
