"""The honest system of a scene, and what attacks may have it do."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec

import undoubt
from tests.prove.bank import NAMES
from tests.prove.impostor.people import MALLORY, Attacker, Name, admin
from tests.prove.impostor.stand import Servers, Stand
from undoubt import wiring
from undoubt.config import Settings, load
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.contract import Ledger, Session
from undoubt.coordinator.protocols.steps import PaxosStep, ThreePhaseStep, TwoPhaseStep
from undoubt.participants.contract import Settled
from undoubt.participants.ids import TxId
from undoubt.participants.registry import Registry
from undoubt.recovery.report import WorkerStatus
from undoubt.recovery.service import RecoveryService
from undoubt.recovery.settings import RecoverySettings
from undoubt.recovery.steps import RecoveryStep

UNDECIDED: dict[str, enum.StrEnum] = {
    "2pc": TwoPhaseStep.BEFORE_DECIDE,
    "3pc": ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT,
    "paxos": PaxosStep.BEFORE_VOTE,
}
"""Every branch is prepared and nothing is recorded."""
DECIDED = TwoPhaseStep.BEFORE_SECOND_PHASE
"""It commits, for certain, and no branch was told."""
SLOW_S = 6.0
"""An honest transaction that takes longer was held up by somebody: all it does itself is four statements."""
TIMEOUT_S = 12.0
RECOVERED_S = 8.0
"""Within which recovery ends what a dead coordinator has left."""
PASSES_S = 8.0


class Kind(enum.StrEnum):
    """What an attack can do."""

    OUTCOME = "outcomes_changed"
    NODE = "nodes_stopped"
    RECORD = "records_made"
    STALL = "stalled"
    SUPERUSER = "became_superuser"
    TOUCHED = "touched"
    """An attacker's branch was finished by undoubt."""
    ADVISED = "advised"
    """A person is told to trust the attacker."""


@dataclass(frozen=True, slots=True)
class Breach:
    kind: Kind
    what: str


@dataclass(slots=True)
class Gate:
    """An observer that stops a coordinator at one step, until it is opened; ``only`` for that participant."""

    step: enum.StrEnum
    only: str = ""
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, step: enum.StrEnum, subject: str) -> Awaitable[None] | None:
        if step is not self.step or self.opened.is_set() or self.only not in subject:
            return None
        self.reached.set()
        return self._wait()

    async def _wait(self) -> None:
        await self.opened.wait()


@dataclass(slots=True)
class Held:
    """An honest transaction that waits at a step, with the coordinator that began it."""

    coordinator: Coordinator
    gate: Gate
    id: str
    first: str = ""
    task: asyncio.Task[str] | None = None
    txid: TxId | None = None

    async def go_on(self) -> str:
        """What its application is told: ``committed``, or the name of an error and its text."""
        self.gate.opened.set()
        if self.task is None:
            raise RuntimeError("it was never begun")
        return await self.task


class Honest:
    """See the module. ``breaches`` are those that the attack which runs has found by itself."""

    def __init__(self, stand: Stand, servers: Servers) -> None:
        self.stand = stand
        self.servers = servers
        self.database = ""
        self.breaches: list[Breach] = []
        self.told: dict[str, str] = {}
        """What the applications of honest transactions were told, by the transfer's id."""
        self.where: dict[str, str] = {}
        """The name of the databases that each of them was in."""
        self.honest = servers.honest
        self.hooks: dict[enum.StrEnum, Callable[[str], Awaitable[None]]] = {}
        """Done when recovery reaches a step: what an attacker who is fast enough does."""
        self.scans = dict.fromkeys(NAMES, 0)
        self.settings: Settings
        self.ledger: Ledger
        self.registry: Registry
        self.teller: Coordinator
        self.mallory: Attacker
        self._expected: dict[str, Settled] = {}
        self._recovery: RecoveryService | None = None
        self._coordinators: list[Coordinator] = []
        self._work: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._late: set[str] = set()
        self._left: list[Held] = []
        self._old: list[Registry] = []
        self._databases: list[str] = []
        self._troubles: list[str] = []
        self._ids = itertools.count(1)
        self._accounts = itertools.cycle(range(8, 60))
        self._stack = AsyncExitStack()
        self._attackers: list[Attacker] = []

    async def build(self) -> None:
        self.database = await self.servers.databases(self.stand)
        ledger = await self.servers.ledger(self.stand, self.database)
        participants = {
            name: {
                "dsn": self.servers.dsn(name, self.database, self.stand.login),
                "driver": self.stand.driver,
            }
            for name in NAMES
        }
        self.settings = load({
            "ledger": ledger,
            "coordinator": {
                "protocol": self.stand.protocol, "termination": self.stand.termination,
                "timeout_s": TIMEOUT_S, "drain_s": 2.0, "name": "honest",
            },
            "participants": participants,
        })  # fmt: skip
        self.ledger = await open_ledger(self.settings.ledger, create=True)
        self._stack.push_async_callback(self.ledger.close)
        self.registry = wiring.registry(self.settings, self.ledger.ledger_id)
        self._stack.push_async_callback(self._close_registry)
        self.teller = await self.coordinator()
        self.mallory = self.attacker(MALLORY)
        await self.start_recovery()
        if not self.stand.quiet:
            await self.start_work()

    async def close(self) -> None:
        """Whatever state it is in."""
        await self.stop_work()
        await self.stop_recovery()
        for attacker in self._attackers:
            await attacker.close()
        for coordinator in self._coordinators:
            with contextlib.suppress(undoubt.UndoubtError, TimeoutError):
                async with asyncio.timeout(10):
                    await coordinator.close()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(10):
                await self._stack.aclose()

    async def _close_registry(self) -> None:
        for registry in [*self._old, self.registry]:
            await registry.close()

    # What attacks are given.

    def attacker(self, role: str) -> Attacker:
        made = self.servers.attacker(role, self.database)
        self._attackers.append(made)
        return made

    async def coordinator(self, observe: Gate | None = None) -> Coordinator:
        made = Coordinator(self.ledger, self.registry, self.settings.coordinator, observe=observe)
        self._coordinators.append(await made.start())
        return made

    async def hold(self, step: enum.StrEnum, only: str = "", *, first: str = "") -> Held:
        """A transfer of a coordinator of its own, up to that step; ``only`` that participant's branch waits.
        ``first``: what the application says first in each branch."""
        gate = Gate(step, only)
        held = Held(await self.coordinator(gate), gate, f"held-{next(self._ids)}", first)
        held.task = asyncio.create_task(self._transfer(held.coordinator, held.id, next(self._accounts), held))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await gate.reached.wait()
                while step is DECIDED and not await self._is_unfinished(held):
                    await asyncio.sleep(0.01)  # of some protocols the ledger is told while branches are
        except TimeoutError:
            self.breach(Kind.STALL, f"a transfer did not come to {step}: {self.told.get(held.id)}")
        return held

    async def dead(self, step: enum.StrEnum, *, first: str = "") -> tuple[Held, dict[str, Name]]:
        """The same, with its names, and its session has ended: its coordinator may go on, and will find that
        out."""
        held = await self.hold(step, first=first)
        names = await self.names(held)
        await self.end_session(held)
        return held, names

    async def end_session(self, held: Held) -> None:
        if held.txid is None:
            raise RuntimeError("it was never begun")
        for one in await self.ledger.sessions():
            if (one.id, one.nonce) == (held.txid.session, held.txid.nonce):
                await self.ledger.close_session(Session(one.id, one.nonce, one.name, one.ttl_s))

    def leave(self, held: Held) -> None:
        """Its coordinator goes on once the attack is judged. Half of it may be lost, by hand: nothing of it
        counts as money."""
        self._left.append(held)

    async def names(self, held: Held) -> dict[str, Name]:
        """Those of its prepared branches, as everybody can read them, by participant."""
        return {
            name.participant: name
            for place in NAMES
            for name in await self.mallory.seen(place)
            if name.txid == str(held.txid) and name.participant == place
        }

    async def any_name(self, place: str = NAMES[0]) -> Name:
        """The next name that the tellers prepare there, while nothing is held."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                for name in await self.mallory.seen(place):
                    if name.txid in self.honest:
                        return name
                await asyncio.sleep(0)

    async def expect_untouched(self, place: str, gids: Collection[str]) -> None:
        """The attacker's branches of these names are still there."""
        async with admin(self.servers.admin_dsn(place, self.database)) as root:
            rows = await root.fetch(
                "select gid from pg_prepared_xacts where owner in ('mallory', 'landlord', 'schemer')"
            )
        for gid in sorted(set(gids) - {row["gid"] for row in rows}):
            self.breach(Kind.TOUCHED, f"undoubt has ended {gid} at {place}, which an attacker prepared")

    # The honest side.

    async def start_recovery(self) -> None:
        settings = RecoverySettings(interval_s=0.02, backoff_max_s=0.5, deadlock_interval_s=0.1)
        self._recovery = RecoveryService(
            self.ledger,
            self.registry,
            settings,
            observe=self._observe,
            cancel=lambda txid, cause: any(one.cancel(txid, cause) for one in self._coordinators),
            always=True,
            hazard_grace_s=0.2,
        )
        await self._recovery.start()

    async def stop_recovery(self) -> None:
        if self._recovery is not None:
            await self._recovery.close()

    @contextlib.asynccontextmanager
    async def no_recovery(self) -> AsyncIterator[None]:
        await self.stop_recovery()
        try:
            yield
        finally:
            await self.start_recovery()

    def _observe(self, step: enum.StrEnum, subject: str) -> Awaitable[None] | None:
        if step is RecoveryStep.BEFORE_SCAN and subject in self.scans:
            self.scans[subject] += 1
        hook = self.hooks.get(step)
        return None if hook is None else hook(subject)

    async def passes(self, count: int = 2) -> None:
        """Once recovery has looked at every participant so often, from its list to its end."""
        wanted = {name: seen + count + 1 for name, seen in self.scans.items()}
        try:
            async with asyncio.timeout(PASSES_S):
                while any(self.scans[name] < wanted[name] for name in NAMES):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            late = [name for name in NAMES if self.scans[name] < wanted[name]]
            self.breach(Kind.STALL, f"recovery of {late} did not look {count} times within {PASSES_S} s")

    async def start_work(self) -> None:
        self._work = [
            asyncio.create_task(self._transfers(account), name=f"teller {account}") for account in (1, 2)
        ]
        self._work.append(asyncio.create_task(self._singles(), name="teller of one"))

    async def stop_work(self) -> None:
        """After the transactions that are under way."""
        self._stopping.set()
        if self._work:
            await asyncio.wait(self._work)
        self._work = []
        self._stopping.clear()

    async def _transfers(self, account: int) -> None:
        while not self._stopping.is_set():
            began = asyncio.get_running_loop().time()
            outcome = await self._transfer(self.teller, f"t{next(self._ids)}", account, None)
            self._note(outcome, asyncio.get_running_loop().time() - began)
            await asyncio.sleep(0.03)

    async def _singles(self) -> None:
        while not self._stopping.is_set():
            began = asyncio.get_running_loop().time()
            outcome = await self._single(f"s{next(self._ids)}")
            self._note(outcome, asyncio.get_running_loop().time() - began)
            await asyncio.sleep(0.05)

    def _note(self, outcome: str, took_s: float) -> None:
        if outcome != "committed":
            self._troubles.append(outcome)
        elif took_s > SLOW_S:
            self._troubles.append(f"committed after {took_s:.1f} s")

    async def _transfer(self, coordinator: Coordinator, name: str, account: int, held: Held | None) -> str:
        async def work(tx: Any) -> None:
            self.honest.add(str(tx.id))
            if held is not None:
                held.txid = tx.id
            for place, amount in zip(NAMES, (-10, 10), strict=True):
                branch = await tx.branch(place)
                if held is not None and held.first:
                    await branch.execute(held.first)
                # In nobody's search path: what the application itself calls is not undoubt's to guard.
                await branch.execute(
                    f"update public.account set balance = balance operator(pg_catalog.+) {amount}"
                    f" where id operator(pg_catalog.=) {account}"
                )
                await branch.execute(f"insert into public.transfer (id) values ('{name}')")

        return await self._attempt(coordinator, name, work)

    async def move(self, coordinator: Coordinator, name: str) -> None:
        """One transfer of another coordinator's, which has to commit."""
        self.told.pop(name, None)
        outcome = await self._transfer(coordinator, f"{name}-{next(self._ids)}", 5, None)
        if outcome != "committed":
            self.breach(Kind.STALL, f"{name}: {outcome}")

    def beside(self) -> Settings:
        """The settings of another process of the same system."""
        return self.settings

    async def expect_progress(self, transfers: int = 20) -> None:
        """The tellers go on."""
        wanted = len(self.told) + transfers
        try:
            async with asyncio.timeout(SLOW_S):
                while len(self.told) < wanted:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self.breach(Kind.STALL, f"the tellers have not done {transfers} transactions within {SLOW_S} s")

    @property
    def recovering(self) -> tuple[WorkerStatus, ...]:
        return () if self._recovery is None else self._recovery.status().participants

    async def _single(self, name: str) -> str:
        async def work(tx: Any) -> None:
            self.honest.add(str(tx.id))
            branch = await tx.branch(NAMES[0])
            await branch.execute(f"insert into public.single (id) values ('{name}')")

        return await self._attempt(self.teller, name, work)

    async def _attempt(
        self, coordinator: Coordinator, name: str, work: Callable[[Any], Awaitable[None]]
    ) -> str:
        self.where[name] = self.database
        try:
            async with coordinator.transaction() as tx:
                await work(tx)
        except undoubt.UndoubtError as error:
            self.told[name] = type(error).__name__
            return f"{type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001 - a driver raises what it likes; no commit has begun
            self.told[name] = "TransactionAborted"
            return f"{type(error).__name__}: {error}"
        self.told[name] = "committed"
        return "committed"

    async def move_one(self, coordinator: Coordinator, also: str = "") -> None:
        """A transaction in one database, which commits in one phase, and has to."""
        name = f"s{next(self._ids)}"

        async def work(tx: Any) -> None:
            self.honest.add(str(tx.id))
            branch = await tx.branch(NAMES[0])
            if also:
                await branch.execute(also)
            await branch.execute(f"insert into public.single (id) values ('{name}')")

        if (outcome := await self._attempt(coordinator, name, work)) != "committed":
            self.breach(Kind.STALL, f"a transaction in one database: {outcome}")

    async def anew(self) -> None:
        """The honest system, as it is after a restart of its processes: every session is opened anew."""
        await self.stop_recovery()
        self._old.append(self.registry)
        self.registry = wiring.registry(self.settings, self.ledger.ledger_id)

    async def in_fresh_databases(self, role: str, plant: Callable[[Attacker], Awaitable[None]]) -> None:
        """From now on the participants are other databases, without tables of undoubt's, in which somebody
        has been before."""
        await self.stop_recovery()
        self._databases.append(self.database)
        self.database = await self.servers.databases(self.stand, tables=False)
        await plant(self.attacker(role))
        self.settings = self._at(self._dsns())

    @contextlib.contextmanager
    def through(self, dsns: Mapping[str, str]) -> Iterator[None]:
        """Meanwhile new sessions of the participants are opened through poolers at these."""
        direct = self.settings
        self.settings = self._at(dsns, pooler=True)
        try:
            yield
        finally:
            self.settings = direct

    def _at(self, dsns: Mapping[str, str], **more: object) -> Settings:
        participants = {
            name: msgspec.structs.replace(one, dsn=dsns[name], **more)
            for name, one in self.settings.participants.items()
        }
        return msgspec.structs.replace(self.settings, participants=participants)

    def _dsns(self) -> dict[str, str]:
        return {name: self.servers.dsn(name, self.database, self.stand.login) for name in NAMES}

    @property
    def coordinators(self) -> list[Coordinator]:
        return self._coordinators

    # What has to come out.

    def breach(self, kind: Kind, what: str) -> None:
        self.breaches.append(Breach(kind, what))

    def expect_heuristic(self, name: Name, kind: Settled) -> None:
        """An accident that happened beside the attack, and that has to be told."""
        self._expected[str(name)] = kind

    async def expect_recovered(self, held: Held, *, committed: bool) -> None:
        """Recovery ends it as it must, in time."""
        placed = await self._ended(held)
        if not placed:
            self.breach(Kind.STALL, f"{held.txid} is in doubt after {RECOVERED_S} s of recovery")
            return
        found = [await self.applied(place, held.id) for place in NAMES]
        if found != [committed, committed]:
            self.breach(Kind.OUTCOME, f"{held.txid} is applied {found} where {committed} everywhere is right")

    async def _ended(self, held: Held) -> bool:
        try:
            async with asyncio.timeout(RECOVERED_S):
                while await self.prepared(held) or await self._is_unfinished(held):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True

    async def prepared(self, held: Held) -> list[str]:
        """Its own branches that are prepared: those that its login role has prepared."""
        found: list[str] = []
        for place in NAMES:
            async with admin(self.servers.admin_dsn(place, self.database)) as root:
                rows = await root.fetch(
                    "select gid from pg_prepared_xacts where database = current_database()"
                    " and owner = $1 and position($2 in gid) > 0",
                    self.stand.login, str(held.txid),
                )  # fmt: skip
                found += [row["gid"] for row in rows]
        return found

    async def _is_unfinished(self, held: Held) -> bool:
        return any(record.txid == held.txid for record in await self.ledger.unfinished())

    async def applied(self, place: str, name: str) -> bool:
        async with admin(self.servers.admin_dsn(place, self.database)) as root:
            return bool(
                await root.fetchval("select exists (select from public.transfer where id = $1)", name)
            )

    async def ended(self, name: Name) -> None:
        """Once its transaction has ended at that place, and the ledger waits for nothing of it."""
        async with asyncio.timeout(RECOVERED_S):
            while str(name) in map(str, await self.mallory.seen(name.participant)):
                await asyncio.sleep(0.01)
            while any(str(record.txid) == name.txid for record in await self.ledger.unfinished()):
                await asyncio.sleep(0.01)

    async def _forget_what_was_left(self) -> None:
        left, self._left = self._left, []
        for held in left:
            await held.go_on()
            await self._forget_transfer(held)

    async def _forget_transfer(self, held: Held) -> None:
        self.told.pop(held.id, None)
        for place, amount in zip(NAMES, (10, -10), strict=True):
            async with admin(self.servers.admin_dsn(place, self.database)) as root:
                if await root.fetchval("delete from public.transfer where id = $1 returning true", held.id):
                    await root.execute(
                        "update public.account set balance = balance + $1 where id = 0", amount
                    )

    async def end_by_hand(self, name: Name, verb: str) -> None:
        """As a database administrator does, who has a bad night."""
        async with admin(self.servers.admin_dsn(name.participant, self.database)) as root:
            await root.execute(f"{verb} prepared '{name}'")
