"""What runs in the simulated processes: applications that move money, recovery, an operator.

All of it is the shipped code: coordinator, protocols, ledger client, recovery. Only the participants are
simulated ones, and what an application does with its branches is drawn from the seed.
"""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

from tests.simulation.database import SqlError
from tests.simulation.judge import Violation
from tests.simulation.participant import SimulatedParticipant
from tests.simulation.recorded import RecordedLedger
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import (
    HeuristicOutcome,
    LedgerError,
    LockTimeout,
    OutcomeUnknown,
    TransactionAborted,
)
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.coordinator.transaction import Transaction
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.participants.ids import TxId
from undoubt.participants.registry import Registry
from undoubt.recovery.operator.explain import explain
from undoubt.recovery.operator.explain_heuristic import explain_heuristic
from undoubt.recovery.operator.resolve import Operator
from undoubt.recovery.operator.survey import survey
from undoubt.recovery.plan import BranchStanding
from undoubt.recovery.service import RecoveryService
from undoubt.recovery.settings import RecoverySettings
from undoubt.recovery.without_ledger import WithoutLedger

if TYPE_CHECKING:
    from tests.simulation.scheduler import Process
    from tests.simulation.world import World


def registry(world: World, ledger_id: str) -> Registry:
    found = Registry()
    for name, address in world.databases.items():
        rows = bool(world.agent)
        found.add(SimulatedParticipant(name, address, ledger_id, notes=world.notes, rows=rows))
    return found


def recovery_settings(random: Random) -> RecoverySettings:
    return RecoverySettings(
        interval_s=random.choice([0.05, 0.3, 1.0]),
        backoff_max_s=random.choice([1.0, 5.0]),
        parallel=random.choice([1, 4, 16]),
        deadlock_interval_s=random.choice([0.5, 1.0]),
    )


def coordinator_settings(world: World, name: str) -> CoordinatorSettings:
    random = world.random
    return CoordinatorSettings(
        name=name,
        protocol=random.choice(world.protocols),
        agent=world.agent,
        termination=world.termination,
        timeout_s=random.choice([2.0, 5.0, 15.0]),
        session_ttl_s=random.choice([1.0, 3.0, 10.0]),
        session_transactions_max=random.choice([3, 20, 100_000]),
        drain_s=random.choice([0.5, 10.0]),
    )


class Application:
    """One process that moves money until the world calls for peace."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process
        self.random = world.random
        self.name = process.name
        self.done = False

    async def main(self) -> None:
        world = self.world
        ledger = await world.open_ledger(self.process)
        recorded = RecordedLedger(ledger, self.name, world.judge, world.history)
        participants = registry(world, ledger.ledger_id)
        settings = coordinator_settings(world, self.name)
        observe = world.observer(self.process)
        coordinator = Coordinator(recorded, participants, settings, observe=observe)
        service = RecoveryService(
            recorded,
            participants,
            recovery_settings(self.random),
            observe=observe,
            cancel=coordinator.cancel,
            rng=Random(self.random.getrandbits(32)),
        )
        await service.start()
        await _until_it_works(coordinator.start)
        self.done = False
        while not world.peace:
            clients = [self.client(coordinator, number) for number in range(self.random.randint(1, 4))]
            await asyncio.gather(*clients)
        self.done = True
        if self.name.startswith("shop1") or self.random.random() < 0.5:
            # It idles on, with its session open: nothing may stay in doubt because of that.
            world.trace(self.name, "is idle")
            await asyncio.get_running_loop().create_future()
        await coordinator.close()
        await service.close()
        await ledger.close()
        world.trace(self.name, "has ended")

    async def client(self, coordinator: Coordinator, number: int) -> None:
        for _ in range(self.random.randint(1, 6)):
            if self.world.peace:
                return
            await asyncio.sleep(self.random.expovariate(4.0))
            try:
                await self.one(coordinator)
            except asyncio.CancelledError as error:
                raise Violation(f"{self.name} was cancelled, and nobody had asked for it") from error

    async def one(self, coordinator: Coordinator) -> None:
        """One transaction; what the application was told goes to the judge."""
        draw = self.random.random()
        if draw < 0.1:
            await self.by_hand(coordinator)
        elif draw < 0.2:
            await self.impatient(coordinator)
        elif draw < 0.25:
            await self.curious(coordinator)
        else:
            await self.transfer(coordinator)

    async def keyed(self, coordinator: Coordinator) -> None:
        """Work that other applications, and other tries, have the same key for."""
        judge, key = self.world.judge, f"order-{self.random.randrange(20)}"
        seen: list[Transaction] = []

        async def body(tx: Transaction) -> str:
            seen.append(tx)
            judge.keyed(key, str(tx.id))
            await self.work(tx)
            return str(tx.id)

        retries = self.random.choice([0, 2])
        with self.telling(seen):
            result = await coordinator.run(
                body, key=key, retries=retries, timeout=self.timeout(), protocol="2pc"
            )
            if not seen or str(seen[-1].id) != result:
                seen.clear()  # the last try has found that another one had committed
                judge.counts["keys repeated"] += 1
            judge.answered(key, result)

    async def transfer(self, coordinator: Coordinator) -> None:
        if self.world.keyed:
            await self.keyed(coordinator)
            return
        if self.world.locks and self.random.random() < 0.7:
            await self.locked(coordinator)
            return
        seen: list[Transaction] = []

        async def body(tx: Transaction) -> None:
            seen.append(tx)
            await self.work(tx)

        with self.telling(seen):
            if self.random.random() < 0.5:
                await coordinator.run(body, retries=self.random.choice([0, 2]), timeout=self.timeout())
            else:
                async with self.transaction(coordinator) as tx:
                    await body(tx)

    async def locked(self, coordinator: Coordinator) -> None:
        """Wait for a lock that others want too, and hold it for a while; the judge hears of the grant, and of
        each moment at which it is certain."""
        random, holders = self.random, self.world.holders
        name, shared = f"job-{random.randrange(2)}", random.random() < 0.3
        lock = coordinator.lock(name, timeout=random.choice([None, 0.0, 0.3, 5.0]), shared=shared)
        floor = holders.highest
        try:
            if random.random() < 0.2:
                if not await lock.try_acquire():
                    return
            else:
                await lock.acquire()
        except (LockTimeout, LedgerError):
            return
        self.world.trace(self.name, f"holds {lock}")
        holders.granted(name, lock.token, shared=shared, floor=floor)
        for _ in range(random.choice([1, 4, 60])):
            if lock.held:
                holders.certain(name, lock.token)
            await asyncio.sleep(random.expovariate(4.0))
        await lock.release()

    def transaction(self, coordinator: Coordinator) -> Transaction:
        return coordinator.transaction(
            timeout=self.timeout(), protocol=self.random.choice([None, *self.world.protocols])
        )

    def timeout(self) -> float | None:
        return self.random.choice([None, None, 0.05, 1.0, 8.0])

    def telling(self, seen: list[Transaction]) -> Any:
        return _Telling(self, seen)

    async def work(self, tx: Transaction) -> None:
        """Take from some accounts, give to others; in one database or in several, in any order."""
        random, world = self.random, self.world
        names = random.sample(
            sorted(world.databases), min(random.choice([1, 2, 2, 2, 3]), len(world.databases))
        )
        amount = random.randint(1, 9)
        draw = random.random()
        if draw < 0.1:
            names_read, names = names[:1], names[1:]
            for name in names_read:
                await (await tx.branch(name)).read(random.randrange(world.accounts))  # type: ignore[attr-defined]
        moves = [(name, 0) for name in names]
        if len(names) >= 2:
            moves = [(names[0], -amount), (names[1], amount), *moves[2:]]
        elif names:
            moves = [(names[0], -amount), (names[0], amount)]
        for name, delta in moves:
            branch: Any = await tx.branch(name)
            await branch.add(random.randrange(world.accounts), delta)
        if draw > 0.97:
            raise UsageError("the application changed its mind")
        if 0.95 < draw < 0.97 and names:
            swallowing: Any = await tx.branch(names[0])
            with contextlib.suppress(Exception):
                await swallowing.add(0, -1_000_000)
        if world.tampers and 0.93 < draw < 0.94 and names:
            meddled: Any = await tx.branch(names[0])
            await meddled.finish_by_application(commit=random.random() < 0.5)

    async def by_hand(self, coordinator: Coordinator) -> None:
        """Without ``async with``."""
        tx = self.transaction(coordinator)
        with self.telling([tx]):
            await tx.start()
            try:
                await self.work(tx)
            except (UndoubtError, SqlError):
                await tx.rollback()
                raise
            if self.random.random() < 0.2:
                await tx.rollback()
                raise TransactionAborted(tx.id, "rolled back as the application wished")
            await tx.commit()

    async def impatient(self, coordinator: Coordinator) -> None:
        """The caller is cancelled at any moment; what was begun goes on."""
        tx = self.transaction(coordinator)

        async def body() -> None:
            async with tx:
                await self.work(tx)

        with contextlib.suppress(TimeoutError, asyncio.CancelledError), self.telling([tx]):
            await asyncio.wait_for(body(), self.random.uniform(0.001, 0.5))

    async def curious(self, coordinator: Coordinator) -> None:
        """Asks about a transaction whose outcome was unknown."""
        unknown = self.world.unknown
        if not unknown:
            return
        txid = self.random.choice(unknown)
        with contextlib.suppress(LedgerError):
            await coordinator.outcome(txid)


class _Telling:
    """Reports what the block raised, or did not, as the outcome of the last of ``seen``."""

    def __init__(self, application: Application, seen: list[Transaction]) -> None:
        self._application = application
        self._seen = seen

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        application, world = self._application, self._application.world
        if error is None:
            outcome = "committed"
        elif isinstance(error, TransactionAborted):
            outcome = "aborted"
        elif isinstance(error, OutcomeUnknown):
            outcome = "unknown"
            world.unknown.append(error.txid)
        elif isinstance(error, HeuristicOutcome):
            outcome = "heuristic"
        elif isinstance(error, UndoubtError | SqlError):
            outcome = "aborted"  # the body raised: it was rolled back, and the error says why
        else:
            return False
        try:
            txid = str(self._seen[-1].id)
        except (IndexError, UsageError):
            return True
        why = "" if error is None else f": {error}"
        world.trace(application.name, f"{txid} {outcome}{why}")
        world.judge.told(txid, outcome)
        return True


async def _until_it_works(call: Any) -> Any:
    while True:
        try:
            return await call()
        except UndoubtError:
            await asyncio.sleep(0.2)


class RecoveryProcess:
    """``undoubt recover``, by hand, beside whatever else recovers."""

    def __init__(self, world: World, process: Process) -> None:
        self.world, self.process = world, process

    async def main(self) -> None:
        world, name = self.world, self.process.name
        ledger = await world.open_ledger(self.process)
        recorded = RecordedLedger(ledger, name, world.judge, world.history)
        participants = registry(world, ledger.ledger_id)
        service = RecoveryService(
            recorded,
            participants,
            recovery_settings(world.random),
            observe=world.observer(self.process),
            always=True,
            rng=Random(world.random.getrandbits(32)),
        )
        await service.run_once(dry_run=True)
        await service.run_once()
        async with service:
            while not world.settled:
                await asyncio.sleep(0.5)
                service.status()
        await ledger.close()


class OperatorProcess:
    """A person at the command line: looks, asks for reasons, and sometimes acts."""

    def __init__(self, world: World, process: Process) -> None:
        self.world, self.process, self.random = world, process, world.random

    async def main(self) -> None:
        world = self.world
        ledger = await world.open_ledger(self.process)
        recorded = RecordedLedger(ledger, self.process.name, world.judge, world.history)
        participants = registry(world, ledger.ledger_id)
        while not world.peace:
            await asyncio.sleep(self.random.expovariate(0.7))
            try:
                await self.look(recorded, participants)
            except UndoubtError as error:
                world.trace(self.process.name, f"{type(error).__name__}: {error}")
        await ledger.close()

    async def look(self, ledger: Any, participants: Registry) -> None:
        random, world = self.random, self.world
        seen = await survey(ledger, participants)
        operator = Operator(ledger, participants)
        for heuristic in seen.heuristics:
            if random.random() < 0.3:
                await explain_heuristic(ledger, heuristic.gid)
                await operator.forget(heuristic.gid)
        await ledger.transactions(limit=5)
        await ledger.sessions()
        await ledger.info()
        if not seen.found:
            return
        found = random.choice(seen.found)
        gid = found.branch.gid
        await explain(ledger, participants, found, seen)
        draw = 1.0 if found.standing is BranchStanding.IMPOSTOR else random.random()
        if draw < 0.3:
            world.trace(self.process.name, f"rolls back {gid}, which is {found.standing}")
            await operator.roll_back(gid)
        elif draw < 0.5:
            world.trace(self.process.name, f"commits {gid}, which is {found.standing}")
            await operator.commit(gid)
        elif draw < 0.6 and world.tampers and hasattr(gid, "txid"):
            world.trace(self.process.name, f"commits {gid} whatever is decided")
            world.judge.story(str(gid.txid)).tampered = str(gid)
            await operator.commit(gid, heuristic=True, note="a test")


class Auditor:
    """Comes when all is over, and asks what is recorded of everything that anybody was told of."""

    def __init__(self, world: World, process: Process) -> None:
        self.world, self.process, self.done = world, process, False

    async def main(self) -> None:
        world = self.world
        ledger = await world.open_ledger(self.process)
        recorded = RecordedLedger(ledger, self.process.name, world.judge, world.history)
        await _until_it_works(lambda: recorded.records(map(TxId.parse, world.judge.stories)))
        self.done = True


class WithoutLedgerProcess:
    """``undoubt recover --without-ledger``: all that is left are the databases."""

    def __init__(self, world: World, process: Process) -> None:
        self.world, self.process = world, process

    async def main(self) -> None:
        world = self.world
        recovery = WithoutLedger(registry(world, world.ledger_id), observe=world.observer(self.process))
        while True:
            report = await recovery.run(dry_run=world.random.random() < 0.2)
            for line in report.lines:
                world.trace(self.process.name, f"{line.gid}: {line.action} {line.result} {line.why}")
            await asyncio.sleep(0.5)
