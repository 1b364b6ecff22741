"""One scene of ``wire`` on databases of its own: strike, use the same coordinator again, recover, judge."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import asyncpg
import psycopg
import sqlalchemy as sa

import undoubt
from tests.prove.wire_cases import DOORS, Case, Scene, Work
from tests.prove.wire_doors import ACCOUNTS, BALANCE, NAMES, ORDERS, PAYMENTS, SCHEMAS, Door, Transfer, url
from tests.prove.wire_proxy import Fault, Place, Strike, Wire
from undoubt import wiring
from undoubt.config import load
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.participants.errors import ParticipantError
from undoubt.participants.ids import Gid
from undoubt.recovery.service import RecoveryService

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_S = 0.02
QUIET_S = 0.2
"""Who says nothing for so long has nothing more to say."""
LOOK_S = 0.3
"""Between two looks of recovery while something is still at work."""
POSTGRES = "postgresql+psycopg"
LEDGER = "ledger"
"""The name of the wire to a ledger that is a database."""
TRIES_MAX = 3
"""How often a case is run until its message comes."""
ATTEMPTS_MAX = 3
"""How often the next transaction is tried while the machine is too slow for its timeouts."""
PASSES_STRUCK = 2
"""How often a recovery through the struck wire looks."""
_APPLICATIONS_OWN = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    psycopg.Error,
    sa.exc.DBAPIError,
    OSError,
    ParticipantError,
)
"""What a statement, or opening a branch, may raise."""


class Stuck(Exception):
    """Something hangs even after its connections were cut: the trial cannot go on."""


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds. What takes longer than ``hang_s`` hangs; recovery comes to its end within ``settle_s``."""

    statement_s: float = 1.0
    transaction_s: float = 2.0
    hang_s: float = 30.0
    settle_s: float = 20.0
    session_s: float = 600.0
    """A session's lifetime: so long that no renewal says meanwhile which of its transactions are over."""

    def hold_s(self, fault: Fault) -> float:
        """How long that fault holds a message back: one that is late comes after whoever waited has given up,
        be it by a statement's timeout or, at PREPARE, by the transaction's."""
        return {Fault.LATE: self.transaction_s * 1.25, Fault.OUTLIVES: 0.3}.get(fault, 0.05)


@dataclass(slots=True)
class Verdicts:
    """What was counted, over any number of runs."""

    runs: int = 0
    missed: int = 0
    """Cases whose message did not come in any of the tries: they are none of ``runs``."""
    wrong: int = 0
    hung: int = 0
    """Of the wrong ones."""
    prepared_after: int = 0
    told: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        self.wrong += 1
        self.failures.append(what)
        log.error("wrong: %s", what)


class Trial:
    """``async with Trial(…) as trial: await trial.measure(); await trial.run(case)``.

    ``dsns`` name databases whose schema public is the trial's, one for each of ``wire_doors.NAMES``;
    ``ledger`` are the settings of a ledger of its own.
    """

    def __init__(
        self,
        scene: Scene,
        dsns: Mapping[str, str],
        ledger: Mapping[str, object],
        verdicts: Verdicts,
        times: Times | None = None,
    ) -> None:
        self._scene = scene
        self._dsns = dict(dsns)
        self._ledger = dict(ledger)
        self._verdicts = verdicts
        self._times = times or Times()
        self._wires = {name: Wire(dsns[name]) for name in NAMES}
        if (address := str(ledger["url"])).startswith(POSTGRES):
            self._wires[LEDGER] = Wire(address.replace(POSTGRES, "postgresql", 1))
        self._admins: dict[str, asyncpg.Connection[asyncpg.Record]] = {}
        self._stack = AsyncExitStack()
        self._opened: tuple[Door, RecoveryService] | None = None
        self._black_out_at: TwoPhaseStep | None = None
        self._black = asyncio.Event()
        self._numbers = 0
        self._struck = False
        self._said = ""
        """The error that was told last."""
        self._ended: list[tuple[Transfer, str]] = []
        """All transfers, and what was told of them."""

    async def __aenter__(self) -> Trial:
        for name, dsn in self._dsns.items():
            self._admins[name] = admin = await asyncpg.connect(dsn)
            self._stack.push_async_callback(admin.close)
            await admin.execute(f"drop schema public cascade; create schema public; {SCHEMAS[name]}")
        for wire in self._wires.values():
            await self._stack.enter_async_context(wire)
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._close()
        finally:
            await self._stack.aclose()

    async def measure(self) -> list[tuple[str, Place, str]]:
        """The messages of a run without faults, once everything is as warm as it will be: the wire's name,
        the place, and what is said. As in every run, the transaction has another timeout than the one before
        it."""
        await self._run(None)
        return await self._run(None)

    async def run(self, case: Case) -> None:
        """Strike, use the same coordinator again, recover, judge. If the message did not come, as another one
        was faster this time, it is tried again; the case is missed if it never comes."""
        for _ in range(TRIES_MAX):
            await self._run(case)
            if self._struck:
                return
        self._verdicts.missed += 1
        log.info("missed: %s: %s", self._scene, case)

    async def audit(self) -> None:
        """After the last run: all is as it was judged, nothing is prepared, no money was made or lost."""
        await self._close()
        problems = [problem for ended in self._ended for problem in await self._judge(*ended)]
        money = [
            await self._admins[name].fetchval("select sum(balance)::bigint from account")
            for name in (ORDERS, PAYMENTS)
        ]
        if sum(money) != 2 * ACCOUNTS * BALANCE:
            problems.append(f"{sum(money) - 2 * ACCOUNTS * BALANCE} of money appeared")
        left = await self._prepared()
        self._verdicts.prepared_after += len(left)
        problems += [f"{gid} is prepared" for gid in left]
        if problems:
            self._verdicts.fail(f"{self._scene}, in the end: {'; '.join(problems)}")

    # The coordinator, and the recovery beside it.

    async def _open(self) -> None:
        kind, driver = DOORS[self._scene.door]
        times = self._times
        coordinator = {
            "protocol": self._scene.protocol,
            "drain_s": times.settle_s,
            "session_ttl_s": times.session_s,
        }
        ledger = dict(self._ledger)
        if LEDGER in self._wires:
            ledger["url"] = url(self._wires[LEDGER], "psycopg").render_as_string(hide_password=False)
        common: dict[str, Any] = {"ledger": ledger, "coordinator": coordinator}
        through = {
            name: {
                "dsn": wire.dsn,
                "driver": driver,
                "connections_max": 4,
                "statement_timeout_s": times.statement_s,
                "connect_timeout_s": times.statement_s,
            }
            for name, wire in self._participants().items()
        }
        straight = load({**common, "participants": {name: {"dsn": dsn} for name, dsn in self._dsns.items()}})
        door = kind({**common, "participants": through}, self._participants(), self._observe)
        await door.open()

        async def service() -> RecoveryService:
            registry = wiring.registry(straight, door.engine.ledger_id)
            return RecoveryService(door.engine.ledger, registry, always=True, hazard_grace_s=0.05)

        self._opened = door, await door.in_loop(service)

    async def _close(self) -> None:
        if self._opened is not None:
            (door, service), self._opened = self._opened, None
            await self._bounded("closing", door.in_loop(service._participants.close))
            await self._bounded("closing", door.close())

    def _participants(self) -> dict[str, Wire]:
        return {name: self._wires[name] for name in NAMES}

    @property
    def _door(self) -> Door:
        if self._opened is None:
            raise RuntimeError("the trial is not open")
        return self._opened[0]

    def _observe(self, step: object, subject: str) -> Awaitable[None] | None:
        """Black out before the step that was asked for. For a recovery of an abort that is after the first
        branch's vote, and the second does not vote before it."""
        gid = Gid.parse(subject)
        number = gid.branch if isinstance(gid, Gid) else 0
        if self._black_out_at is TwoPhaseStep.AFTER_PREPARE and number == 2:
            return self._until_black() if step is TwoPhaseStep.BEFORE_PREPARE else None
        if self._black_out_at is not None and step is self._black_out_at:
            for wire in self._participants().values():
                wire.black_out()
            self._black.set()
        return None

    async def _until_black(self) -> None:
        await self._black.wait()

    # One run.

    async def _run(self, case: Case | None) -> list[tuple[str, Place, str]]:
        if self._scene.cold:
            await self._close()
            await self._open()
        problems: list[str] = []
        first = self._next(self._scene.writers, 2 * self._times.hang_s)
        if self._scene.recovers:
            first.reads = False  # else the coordinator itself goes on, for its reader's sake
            told = await self._leave_in_doubt(first, problems)
            self._arm(case)
            await self._recover_struck(problems)
        else:
            if case is not None:
                # The first statements of a cold one wait for connections.
                first.timeout_s = self._times.transaction_s * (2 if self._scene.cold else 1)
            self._arm(case)
            told = await self._tell(first, problems)
        await self._bounded("finishing", self._door.in_loop(self._door.engine._finisher.flush))
        await self._until_quiet(case)
        heard = [(name, place, label) for name, wire in self._wires.items() for place, label in wire.heard]
        struck = case is None or self._wires[case.target].struck
        self._struck = struck
        if struck and self._numbers % 2:
            await self._until_given_up(problems)
        second, told_second = await self._use_again(problems)
        for wire in self._wires.values():
            wire.heal()
        await self._settle(problems)
        for transfer, end in ((first, told), (second, told_second)):
            problems += await self._judge(transfer, end)
            self._ended.append((transfer, end))
        self._count(case, told, problems, struck=struck)
        return heard

    async def _until_quiet(self, case: Case | None) -> None:
        """Sessions are cleaned up in the background: until the strike, or until nothing more is said."""
        loop = asyncio.get_running_loop()
        heard, since = -1, loop.time()
        while loop.time() - since < QUIET_S and not (case and self._wires[case.target].struck):
            now = sum(len(wire.heard) for wire in self._wires.values())
            if now != heard or not all(wire.settled for wire in self._wires.values()):
                heard, since = now, loop.time()
            await asyncio.sleep(PAUSE_S)

    async def _until_given_up(self, problems: list[str]) -> None:
        """A connection that was lost is closed, without anybody having to run into it again."""
        end = asyncio.get_running_loop().time() + self._times.settle_s
        while any(wire.kept for wire in self._wires.values()):
            if asyncio.get_running_loop().time() > end:
                problems.append("a lost connection is kept")
                return
            await asyncio.sleep(PAUSE_S)

    async def _use_again(self, problems: list[str]) -> tuple[Transfer, str]:
        """Another transaction of the same coordinator commits, on none of the connections that were lost."""
        for attempt in range(ATTEMPTS_MAX):
            self._arm(None)
            second = self._next((ORDERS, PAYMENTS), self._times.hang_s)
            told = await self._tell(second, problems)
            lent = [label for wire in self._wires.values() for label in wire.to_nobody]
            if lent:
                problems.append(f"the next transaction was given a lost connection: {lent}")
            if told == "committed" or lent or attempt == ATTEMPTS_MAX - 1 or not _late(self._said):
                break
            self._ended.append((second, told))
        if told != "committed":
            problems.append(f"the next transaction was told {told}: {self._said}")
        return second, told

    def _count(self, case: Case | None, told: str, problems: list[str], *, struck: bool) -> None:
        verdicts = self._verdicts
        if case is not None:
            verdicts.runs += struck
            verdicts.told[told] = verdicts.told.get(told, 0) + struck
        if problems:
            what = str(case or "no fault") if struck else f"not struck: {case}"
            verdicts.fail(f"{self._scene}: {what}: told {told} ({self._said}); {'; '.join(problems)}")

    def _next(self, writers: tuple[str, ...], timeout_s: float) -> Transfer:
        self._numbers += 1
        account = 2 * self._numbers % ACCOUNTS  # a transfer within a database wants the next one as well
        return Transfer(f"t{self._numbers}", account, writers, timeout_s)

    def _arm(self, case: Case | None) -> None:
        for name, wire in self._wires.items():
            strike = None
            if case is not None and case.target == name:
                strike = Strike(case.place, case.fault, self._times.hold_s(case.fault))
            wire.arm(strike)

    async def _tell(self, transfer: Transfer, problems: list[str]) -> str:
        """What the application is told."""
        try:
            await self._bounded("the transaction", self._door.transfer(transfer), problems)
        except undoubt.TransactionAborted as error:
            self._said = _named(error)
            return "aborted"
        except undoubt.OutcomeUnknown as error:
            self._said = _named(error)
            return "unknown"
        except _APPLICATIONS_OWN as error:
            self._said = _named(error)
            if transfer.all_said:
                problems.append(f"commit raised {_named(error)}")
            return "failed"
        except Stuck:
            raise
        except Exception as error:  # noqa: BLE001 - whatever else is told, is wrong
            problems.append(_named(error))
            return "something else"
        return "committed"

    async def _bounded(
        self, what: str, coroutine: Coroutine[Any, Any, T], problems: list[str] | None = None
    ) -> T:
        task = asyncio.create_task(coroutine)
        if not (await asyncio.wait([task], timeout=self._times.hang_s))[0]:
            self._verdicts.hung += 1
            if problems is None:
                self._verdicts.fail(f"{self._scene}: {what} hangs")
            else:
                problems.append(f"{what} hung")
            for wire in self._wires.values():
                wire.black_out()
                wire.light()
            if not (await asyncio.wait([task], timeout=self._times.hang_s))[0]:
                raise Stuck(f"{self._scene}: {what}")
        if task.cancelled():
            raise RuntimeError(f"{what} was cancelled")
        return task.result()

    # Recovery.

    async def _leave_in_doubt(self, transfer: Transfer, problems: list[str]) -> str:
        """A transfer whose participants cannot be reached from some step on."""
        committed = self._scene.work is Work.RECOVER_COMMITTED
        self._black.clear()
        self._black_out_at = TwoPhaseStep.BEFORE_SECOND_PHASE if committed else TwoPhaseStep.AFTER_PREPARE
        told = await self._tell(transfer, problems)
        self._black_out_at = None
        if not await self._prepared():
            problems.append("nothing was in doubt before the recovery")
        for wire in self._wires.values():
            wire.light()
        return told

    async def _recover_struck(self, problems: list[str]) -> None:
        engine = self._door.engine
        service = RecoveryService(engine.ledger, engine.participants, always=True, hazard_grace_s=0.05)
        for _ in range(PASSES_STRUCK):
            report = await self._bounded("recovery", service.run_once(), problems)
            problems += [text for text in report.errors.values() if text.startswith("unexpected ")]

    async def _settle(self, problems: list[str]) -> None:
        """Until nothing that was sent can happen later, nothing is at work, and recovery finds nothing."""
        loop = asyncio.get_running_loop()
        end, look_at = loop.time() + self._times.settle_s, 0.0
        door, service = self._opened or (None, None)
        if door is None or service is None:
            return
        left: list[str] = []
        while loop.time() < end:
            quiet = all(wire.settled for wire in self._wires.values()) and not door.engine.live
            if quiet or loop.time() > look_at:
                look_at = loop.time() + LOOK_S
                report = await self._bounded("recovery", door.in_loop(service.run_once), problems)
                left = await self._prepared()
                if quiet and not left and not report.unfinished and not report.errors:
                    break
            await asyncio.sleep(PAUSE_S)
        else:
            await self._not_settled(left, problems)
        if heuristics := await door.in_loop(door.engine.ledger.heuristics):
            problems.append(f"heuristics: {[f'{each.gid} {each.kind}' for each in heuristics]}")

    async def _not_settled(self, left: list[str], problems: list[str]) -> None:
        self._verdicts.prepared_after += len(left)
        problems.append(
            f"not settled: prepared {left}, at work {list(map(str, self._door.engine.live))}, wires"
            f" {[wire.settled for wire in self._wires.values()]}"
        )
        await self._end_by_hand()

    async def _prepared(self) -> list[str]:
        sql = "select gid from pg_prepared_xacts where database = current_database()"
        return [row["gid"] for admin in self._admins.values() for row in await admin.fetch(sql)]

    async def _end_by_hand(self) -> None:
        """So that the next run speaks for itself."""
        sql = "select gid from pg_prepared_xacts where database = current_database()"
        for admin in self._admins.values():
            for row in await admin.fetch(sql):
                await admin.execute(f"rollback prepared '{row['gid']}'")

    # The judge.

    async def _judge(self, transfer: Transfer, told: str) -> list[str]:
        sql = "select exists (select from transfer where id = $1)"
        there = {name for name in (ORDERS, PAYMENTS) if await self._admins[name].fetchval(sql, transfer.name)}
        both, none = set(transfer.writers), set[str]()
        right = {"committed": [both], "unknown": [both, none]}
        if there in right.get(told, [none]):
            return []
        return [f"{transfer.name} was told {told} and is in {sorted(there) or 'no database'}"]


def _late(said: str) -> bool:
    """A slow machine may say that."""
    return "in time" in said or "within" in said or "TimeoutError" in said


def _named(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__name__}: {' '.join(str(error).split())[:200]}"
