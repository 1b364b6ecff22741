"""The recovery service: a worker for each participant, the deadlock detector, and their status."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from undoubt.coordinator.errors import DistributedDeadlock, LedgerError
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.protocols.steps import Observer
from undoubt.coordinator.supervision import Supervised, restarts
from undoubt.participants.contract import Participant
from undoubt.participants.errors import UndoubtError
from undoubt.participants.registry import Registry
from undoubt.recovery.deadlocks import Cancel, DeadlockDetector
from undoubt.recovery.meter import RecoveryMeter
from undoubt.recovery.promotion import PromotionCheck
from undoubt.recovery.report import Report, Status
from undoubt.recovery.resolve import LEFT_TO_LIVE_S, RecoveryContext
from undoubt.recovery.scan import unfinished
from undoubt.recovery.settings import RecoverySettings
from undoubt.recovery.worker import Passed, RecoveryWorker, one_pass

log = logging.getLogger(__name__)

KEEP_PAUSE_S = (0.02, 1.0)
"""Shortest and longest pause between two looks at the registered participants and at whether this process
leads."""


class RecoveryService:
    """Resolves in-doubt branches in the background, from ``start`` to ``close``.

    It works only while ``ledger.leads``; with ``always`` it works in any case, for recovery by hand.
    ``observe`` receives every :class:`~undoubt.recovery.steps.RecoveryStep`. ``cancel`` is the method of this
    process's coordinator that aborts victims of deadlocks. A hazard is recorded after two looks,
    ``hazard_grace_s`` seconds apart. ``meter`` receives what each pass saw and did. While ``stuck()``, it
    looks for deadlocks also where the ledger does not lead: the leader may not know these participants."""

    def __init__(
        self,
        ledger: Ledger,
        participants: Registry,
        settings: RecoverySettings | None = None,
        *,
        observe: Observer | None = None,
        cancel: Cancel | None = None,
        always: bool = False,
        hazard_grace_s: float = 1.0,
        meter: RecoveryMeter | None = None,
        rng: random.Random | None = None,
        stuck: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ledger = ledger
        self._participants = participants
        self._settings = settings or RecoverySettings()
        self._always = always
        self._stuck = stuck
        self._meter = meter
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self.context = RecoveryContext(ledger, participants, self._settings.parallel, observe, hazard_grace_s)
        self._detector = DeadlockDetector(ledger, participants, cancel)
        self._workers: dict[str, tuple[RecoveryWorker, asyncio.Task[None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._last_error: str | None = None

    async def start(self) -> RecoveryService:
        """Start the workers. Does nothing if they are running."""
        if not self._tasks:
            self._tasks = [Supervised("recovery", self._keep_workers).start("undoubt-recovery")]
            if self._settings.deadlock_interval_s > 0:
                self._tasks.append(
                    Supervised("deadlocks", self._look_for_deadlocks).start("undoubt-deadlocks")
                )
        return self

    async def close(self) -> None:
        """Stop at once. The next recovery, here or elsewhere, finds what is left. May be repeated."""
        tasks, self._tasks = self._tasks, []
        await _end(tasks)
        await self._end_workers(list(self._workers))

    async def __aenter__(self) -> RecoveryService:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def run_once(self, *, dry_run: bool = False) -> Report:
        """One pass over all participants at once, whether or not the ledger leads.

        If a hazard needs a second look, or a branch was left to a coordinator that lives, the pass is made
        twice. ``dry_run`` reports what a pass would do, and
        changes nothing. Errors of participants, and of the ledger about them, are in the report.
        """
        tools = self.context
        if dry_run:
            tools = RecoveryContext(self._ledger, self._participants, self._settings.parallel)
        passes = await self._pass(tools, dry_run=dry_run)
        if not passes:
            tools.progress.read(await unfinished(self._ledger), asyncio.get_running_loop().time())
        if tools.left_to_live and not dry_run:
            # Whoever asks once asks for the end, also if the coordinator has died a moment ago.
            tools.left_to_live = False
            await asyncio.sleep(LEFT_TO_LIVE_S)
            again = await self._pass(tools, dry_run=False)
            passes = {name: passes.get(name, Passed(())).followed_by(now) for name, now in again.items()}
        if not dry_run:
            await self._tidy(tools)
            await self._look_for_lost()
        if tools.progress.doubts and not dry_run:
            await asyncio.sleep(tools.hazard_grace_s)
            again = await self._pass(tools, dry_run=False)
            passes = {name: passes.get(name, Passed(())) + now for name, now in again.items()}
        return Report(
            dry_run,
            tuple(line for passed in passes.values() for line in passed.lines),
            tuple(dict.fromkeys(txid for passed in passes.values() for txid in passed.finished)),
            tools.progress.left(self._participants),
            {name: passed.error for name, passed in passes.items() if passed.error is not None},
        )

    async def _tidy(self, tools: RecoveryContext) -> None:
        """Copy and delete the rows of last-agent commit that were left at agents."""
        terminator = tools.terminator
        for participant in self._participants:
            after = b""
            try:
                while after := await terminator.agents.tidy(participant, terminator.alive, after):
                    pass
            except UndoubtError as error:
                log.info("rows of last-agent commit are left at %r: %s", participant.name, error)

    async def _look_for_lost(self) -> None:
        """Look for what promoted servers have lost."""
        for participant in self._participants:
            check = PromotionCheck(self._ledger, participant)
            try:
                while not await check.go_on():
                    pass
            except UndoubtError as error:
                log.info("what %r has lost is not known: %s", participant.name, error)

    async def _pass(self, tools: RecoveryContext, *, dry_run: bool) -> dict[str, Passed]:
        everyone = list(self._participants)
        passes = await asyncio.gather(
            *(one_pass(tools, participant, dry_run=dry_run) for participant in everyone)
        )
        return {participant.name: passed for participant, passed in zip(everyone, passes, strict=True)}

    def status(self) -> Status:
        """The status of the workers. ``unfinished`` is what they read last."""
        return Status(
            bool(self._tasks),
            self._ledger.leads,
            tuple(worker.status() for _, (worker, _) in sorted(self._workers.items())),
            self.context.progress.left(self._participants),
            self.context.counters,
            self._last_error,
        )

    # The tasks.

    def _allowed(self) -> bool:
        return self._always or self._ledger.leads

    async def _keep_workers(self) -> None:
        """Keep one worker for each registered participant; a replaced participant gets a new worker."""
        low, high = KEEP_PAUSE_S
        while True:
            wanted = {one.name: one for one in self._participants} if self._allowed() else {}
            ended = [name for name, (worker, _) in self._workers.items() if not _same(worker, wanted)]
            await self._end_workers(ended)
            for name, participant in wanted.items():
                if name not in self._workers:
                    on_pass = self._meter.passed if self._meter is not None else None
                    worker = RecoveryWorker(
                        participant, self.context, self._settings, self._allowed, self._rng, on_pass=on_pass
                    )
                    task = Supervised("recovery worker", worker.run).start(f"undoubt-recovery {name}")
                    self._workers[name] = (worker, task)
            await asyncio.sleep(min(max(self._settings.interval_s, low), high))

    async def _end_workers(self, names: list[str]) -> None:
        ended = [self._workers.pop(name)[1] for name in names]
        await _end(ended)
        if self._meter is not None:
            for name in names:
                self._meter.gone(name)

    async def _look_for_deadlocks(self) -> None:
        while True:
            await asyncio.sleep(self._settings.deadlock_interval_s)
            if not (self._allowed() or self._stuck()):
                continue
            try:
                await self.look_for_deadlocks()
            except LedgerError as error:
                self._last_error = f"deadlock detector: {error}"
            except Exception as error:
                # A bug of ours or of a driver's must not stop recovery; the next look may succeed.
                restarts["deadlocks"] += 1
                log.exception("the deadlock detector failed")
                self._last_error = f"deadlock detector: unexpected {type(error).__name__}: {error}"
            else:
                self._last_error = None

    async def look_for_deadlocks(self) -> list[DistributedDeadlock]:
        """One look at the wait graphs of all participants; ends the deadlocks it finds, and returns them."""
        found = await self._detector.look()
        self.context.counters.deadlocks += len(found)
        if self._meter is not None:
            self._meter.deadlocks(len(found))
        return found


def _same(worker: RecoveryWorker, wanted: dict[str, Participant]) -> bool:
    return wanted.get(worker.participant.name) is worker.participant


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
