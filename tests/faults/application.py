"""An application that moves money through undoubt until its input ends, and tells all of it on its output.

Arguments: settings as JSON, a tag for its transfers, the folder where all applications tell. The moments told
are of the monotonic clock, which all processes share: of each call one before it and one after. One worker
asks the ledger what became of transactions, also of other applications'.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

from tests.linearizability.history import Call, History
from tests.linearizability.recorder import Recorder
from tests.prove.bank import ACCOUNTS, NAMES, TRANSFER_ERRORS, transfer
from tests.prove.trap import tell
from undoubt import wiring
from undoubt.config import Settings, load
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.protocols.steps import PaxosStep, TwoPhaseStep
from undoubt.coordinator.settings import PROTOCOLS
from undoubt.errors import (
    LedgerError,
    LedgerUnavailable,
    LockTimeout,
    OutcomeUnknown,
    TransactionAborted,
)
from undoubt.participants.ids import Gid

DECIDING = frozenset({TwoPhaseStep.BEFORE_DECIDE, PaxosStep.BEFORE_VOTE})
WORKERS = 8
LOCKERS = 2
SHARED = 0.3
LOOKS = (1, 5, 100)
"""How often a holder looks whether it is certain to have its lock; at last for longer than sessions last."""
TIMEOUT_S = 5.0
PAUSE_S = (0.0, 0.02)
ASK_EVERY_S = 0.05
ASK_AT_ONCE = 4
TAIL_BYTES = 16 * 1024
_BEGUN = re.compile(rb'"gid": "([^"]+)"')


class ToldHistory(History):
    """A history that is told as it happens: each call when it is asked, and again when it is answered."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self._number = 0
        self._numbers: dict[Call, int] = {}

    def begin(self, who: str, what: str, **of: Any) -> Call:
        call = Call(who, what, self.now(), **of)
        self._number += 1
        self._numbers[call] = self._number
        tell(asked=self._number, who=who, what=what, at=call.asked_at, of=of)
        return call

    def end(self, call: Call, result: str) -> None:
        super().end(call, result)
        number = self._numbers.pop(call)
        tell(answered=number, at=call.answered_at, result=result, session=call.session)


class Stopping:
    """An observer that has this process stop before its next decision, once it was told by SIGUSR1, unless it
    was told by SIGUSR2 that it need not."""

    def __init__(self) -> None:
        self._told = False
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._tell, True)
        loop.add_signal_handler(signal.SIGUSR2, self._tell, False)

    def _tell(self, told: bool) -> None:
        self._told = told

    def __call__(self, step: enum.StrEnum, _subject: str) -> None:
        if self._told and step in DECIDING:
            self._told = False
            os.kill(os.getpid(), signal.SIGSTOP)


class Application:
    def __init__(self, coordinator: Coordinator, ledger: Ledger, tag: str, stop: asyncio.Event) -> None:
        self._coordinator = coordinator
        self._protocol = PROTOCOLS[coordinator.settings.protocol]
        self._ledger = ledger
        self._tag = tag
        self._stop = stop
        self._random = Random(tag)

    async def work(self, worker: int) -> None:
        """One transfer after the other."""
        number = 0
        while not self._stop.is_set():
            number += 1
            await self._transfer(f"{self._tag}-{worker}-{number}")
            await asyncio.sleep(self._random.uniform(*PAUSE_S))

    async def _transfer(self, name: str) -> None:
        account = self._random.randrange(ACCOUNTS)
        committing = False
        try:
            async with self._coordinator.transaction(timeout=TIMEOUT_S) as tx:
                gid = Gid(self._ledger.ledger_id, self._protocol, tx.id, 1, NAMES[0]).tagged(tx.lease.key)
                tell(begun=name, txid=str(tx.id), gid=str(gid))
                await transfer(tx, account, name)
                committing = True
        except TransactionAborted as error:
            tell(aborted=name, why=str(error))
        except OutcomeUnknown as error:
            tell(unknown=name, why=str(error))
        except TRANSFER_ERRORS as error:
            why = f"{type(error).__name__}: {error}"
            tell(**{"astray" if committing else "aborted": name}, why=why)
        else:
            tell(acknowledged=name, at=time.monotonic())

    async def lock(self) -> None:
        """Take one of few locks, which others want too, and hold it for a while."""
        while not self._stop.is_set():
            name, shared = f"job-{self._random.randrange(2)}", self._random.random() < SHARED
            lock = self._coordinator.lock(name, timeout=TIMEOUT_S, shared=shared)
            asked = time.monotonic()
            try:
                await lock.acquire()
            except (LockTimeout, LedgerError, OutcomeUnknown):
                await asyncio.sleep(ASK_EVERY_S)
                continue
            tell(granted=name, token=lock.token, shared=shared, asked=asked, at=time.monotonic())
            for _ in range(self._random.choice(LOOKS)):
                moment = time.monotonic()
                if lock.held:
                    tell(held=name, token=lock.token, at=moment)
                await asyncio.sleep(self._random.uniform(0.0, 0.1))
            await lock.release()

    async def ask(self, folder: Path) -> None:
        """What became of transactions of late, anybody's."""
        while not self._stop.is_set():
            await asyncio.sleep(ASK_EVERY_S)
            gids = self._lately(self._random.choice(sorted(folder.glob("told-*"))))
            if not gids:
                continue
            with contextlib.suppress(LedgerUnavailable):
                await self._ledger.outcomes(gids)
                await self._ledger.records([gid.txid for gid in gids])

    def _lately(self, told: Path) -> list[Gid]:
        """The first branches of some of the last transactions that an application has begun."""
        with told.open("rb") as file:
            file.seek(max(told.stat().st_size - TAIL_BYTES, 0))
            begun = _BEGUN.findall(file.read())
        chosen = self._random.sample(begun, min(ASK_AT_ONCE, len(begun)))
        parsed = [Gid.parse(text.decode()) for text in sorted(set(chosen))]
        return [gid for gid in parsed if isinstance(gid, Gid)]


@contextlib.asynccontextmanager
async def connected(
    settings: Settings, tag: str, stopping: Stopping
) -> AsyncIterator[tuple[Coordinator, Ledger]]:
    """As ``undoubt.connect``, with a ledger that tells what it is asked and what it answers."""
    async with contextlib.AsyncExitStack() as stack:
        opened = await open_ledger(settings.ledger)
        stack.push_async_callback(opened.close)
        participants = wiring.registry(settings, opened.ledger_id)
        stack.push_async_callback(participants.close)
        ledger = Recorder(opened, tag, ToldHistory())
        coordinator = Coordinator(ledger, participants, settings.coordinator, observe=stopping)
        await stack.enter_async_context(coordinator)
        yield coordinator, ledger


async def main(settings: str, tag: str, folder: str) -> None:
    loaded, stop = load(json.loads(settings)), asyncio.Event()
    loop = asyncio.get_running_loop()

    def input_ended() -> None:
        loop.remove_reader(sys.stdin)
        stop.set()

    loop.add_reader(sys.stdin, input_ended)
    stopping = Stopping()
    tell(ready=True)
    while not stop.is_set():
        try:
            async with connected(loaded, tag, stopping) as (coordinator, ledger):
                application = Application(coordinator, ledger, tag, stop)
                await asyncio.gather(
                    application.ask(Path(folder)),
                    *(application.work(worker) for worker in range(WORKERS)),
                    *(application.lock() for _ in range(LOCKERS)),
                )
        except LedgerUnavailable as error:  # it is started while nobody leads
            logging.warning("not connected yet: %s", error)
    tell(ended=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main(*sys.argv[1:4]))
