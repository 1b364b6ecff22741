"""Honest work beside the poison: clients that decide one transaction after the other, and must notice
nothing."""

from __future__ import annotations

import asyncio

from tests.coordinator.ledger.signing import Signing
from tests.prove.poison.targets import BRANCHES
from undoubt.coordinator.ledger.contract import Ledger, RecordedDecision, Session
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import TxId

WORKERS = 4
ASKED_AT_ONCE = 1_000


class Load:
    """``disturbed`` are its calls that failed, or were answered otherwise than they have to be."""

    def __init__(self, ledger: Signing, session: Session) -> None:
        self.disturbed: list[str] = []
        self.ledger = ledger
        self._session = session
        self._committed: list[TxId] = []
        self._seq = 0
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(WORKERS)]

    @classmethod
    async def on(cls, opened: Ledger) -> Load:
        ledger = Signing(opened)
        return cls(ledger, await ledger.open_session("honest", 600.0))

    @property
    def committed(self) -> int:
        return len(self._committed)

    @property
    def known(self) -> TxId:
        """A transaction whose COMMIT was answered, once there is one."""
        return self._committed[0]

    async def begun(self) -> None:
        async with asyncio.timeout(60):
            while not self._committed:
                await asyncio.sleep(0.01)

    async def _work(self) -> None:
        while not self._stop.is_set():
            self._seq += 1
            txid = self._session.txid(self._seq)
            try:
                decided = await self.ledger.decide(txid, Decision.COMMIT, BRANCHES)
                if self._seq % 50 == 0:
                    await self.ledger.keep_alive(self._session, 1)
            except UndoubtError as error:
                self.disturbed.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.05)
                continue
            if decided is Decision.COMMIT:
                self._committed.append(txid)
            else:
                self.disturbed.append(f"{txid} was decided {decided}")

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def look_again(self) -> None:
        """Whatever was answered COMMIT must be so still."""
        for first in range(0, self.committed, ASKED_AT_ONCE):
            asked = self._committed[first : first + ASKED_AT_ONCE]
            try:
                records = await self.ledger.records(asked)
            except UndoubtError as error:
                self.disturbed.append(f"records: {error}")
                return
            self.disturbed += [
                f"{txid} is {records[txid]}" for txid in asked if records[txid] is not RecordedDecision.COMMIT
            ]

    async def close(self) -> None:
        self._stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.ledger.close()
