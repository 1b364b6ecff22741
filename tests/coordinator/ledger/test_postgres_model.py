"""The PostgreSQL ledger against the model that the state machine is held against."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar, assert_never

import asyncpg
import msgspec
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from tests.coordinator.ledger.postgres_stage import opened, settings_for
from tests.coordinator.ledger.signing import Signing
from tests.coordinator.ledger.test_machine_properties import LedgerAgainstModel
from tests.servers import Server, fresh_database
from undoubt.coordinator.errors import SessionLost
from undoubt.coordinator.ledger import commands as c
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.contract import DecisionRecord, RecordedDecision, Session, Verdict
from undoubt.coordinator.ledger.postgres.maintenance import BEAT_S_MAX
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import Gid, Protocol, TxId

T = TypeVar("T")

ALL_TABLES = "session, decision, unfinished, precommitted, heuristic"
FOR_EVER_MS = 10**15


class Stage:
    """One ledger in a loop of its own, emptied for each example."""

    def __init__(self, server: Server) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = contextlib.AsyncExitStack()
        self.ledger: Signing = self.run(self._stack.enter_async_context(self._opened(server)))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    @contextlib.asynccontextmanager
    async def _opened(self, server: Server) -> AsyncIterator[Signing]:
        async with fresh_database(server, "model") as dsn:
            found = settings_for(dsn, history_s=0.0)
            await maintenance.init(found)
            self._sql = await asyncpg.connect(dsn)
            async with opened(found) as ledger:
                yield ledger
            await self._sql.close()

    async def sql(self, statement: str) -> None:
        await self._sql.execute("set search_path = undoubt_ledger; " + statement)

    def empty(self) -> None:
        self.run(self.sql(f"truncate {ALL_TABLES}; update ledger set next_session = 1, incarnation = 1"))

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._loop.close()


class Rows:
    """What the machine's tests ask of a machine, asked of the ledger."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._ledger = stage.ledger
        self._known: dict[TxId, tuple[Verdict, RecordedDecision]] = {}

    @property
    def kept_longer_s(self) -> float:
        """By how much longer than the retention this ledger keeps what is old. The model keeps it for the
        retention exactly."""
        return BEAT_S_MAX

    @property
    def state(self) -> SimpleNamespace:
        return SimpleNamespace(incarnation=self._stage.run(self._ledger.info()).incarnation)

    def apply(self, command: c.Command) -> object:
        try:
            return self._stage.run(self._applied(command))
        except UndoubtError as error:
            return error

    async def _applied(self, command: c.Command) -> object:  # noqa: PLR0911
        ledger = self._ledger
        match command:
            case c.OpenSession():
                return await self._open(command)
            case c.KeepAlive():
                session = Session(command.session, command.nonce, "", 1.0)
                return await ledger.keep_alive(session, command.floor)
            case c.CloseSession():
                return await ledger.close_session(Session(command.session, command.nonce, "", 1.0))
            case c.ExpireSession():
                await self._stage.sql(f"update session set ttl_ms = -1 where id = {command.session}")
                return await ledger.upkeep.expire()
            case c.Decide():
                return await ledger.decide(
                    command.txid, command.decision, command.branches, protocol=command.protocol
                )
            case c.Precommit():
                await ledger.precommit(command.txid, command.branches, protocol=command.protocol)
                return None
            case c.Finish():
                await ledger.finish(command.txids)
                return None
            case c.RecordHeuristic():
                return await ledger.record_heuristic(command.heuristic)
            case c.ForgetHeuristic():
                return await ledger.forget_heuristic(command.gid)
            case c.AdvanceTime():
                upkeep = ledger.upkeep
                retention_s = command.retention_ms / 1000 - self.kept_longer_s
                assert retention_s >= 0, "the ledger would drop what the model keeps"
                upkeep._settings = msgspec.structs.replace(upkeep._settings, retention_s=retention_s)
                await upkeep.move(command.elapsed_ms)
                return await upkeep.retire()
            case c.Restore():
                await self._stage.sql("update ledger set timeline = 'elsewhere'")
                restored = await ledger.info()
                await ledger.upkeep.look()
                return restored.incarnation
            case (
                c.DrawSecret()
                | c.Doom()
                | c.RecordAct()
                | c.Judge()
                | c.ClaimKey()
                | c.CommitKey()
                | c.FreeKey()
            ):
                raise AssertionError(f"the model gives none of these: {command}")
            case c.AskLock() | c.EndLock() | c.RevokeLock():
                raise AssertionError(f"locks have a model of their own: {command}")
            case c.SealLedger() | c.SettleMove() | c.ReceiveState():
                raise AssertionError(f"a move is not the model's: {command}")
            case _:
                assert_never(command)

    async def _open(self, command: c.OpenSession) -> Session:
        for known in await self._ledger.sessions():
            if known.nonce == command.nonce:  # a nonce that comes twice is not this ledger's own doing
                return Session(known.id, known.nonce, known.name, known.ttl_s)
        session = await self._opened(command)
        self._ledger.remember(session)
        return session.public

    async def _opened(self, command: c.OpenSession) -> Session:
        ((number,),) = await self._ledger._ask(
            "open_session", nonce=command.nonce, name=command.name, ttl_ms=FOR_EVER_MS, agent=None
        )
        key = self._ledger._names.key_bytes(number, command.nonce)
        return Session(number, command.nonce, command.name, 1.0, key=key)

    def look_up(self, txids: list[TxId]) -> None:
        """In one call what ``verdict`` and ``record`` tell then."""
        names = self._ledger._names
        gids = {
            txid: Gid(names.ledger_id, Protocol.TWO_PHASE, txid, 1, "orders").tagged(
                names.key(txid.session, txid.nonce)
            )
            for txid in txids
        }
        verdicts = self._stage.run(self._ledger.ledger.outcomes(gids.values()))
        records = self._stage.run(self._ledger.records(txids))
        self._known = {txid: (verdicts[gids[txid]], records[txid]) for txid in txids}

    def verdict(self, txid: TxId, protocol: Protocol) -> Verdict:
        assert protocol is Protocol.TWO_PHASE
        return self._known[txid][0]

    def record(self, txid: TxId) -> RecordedDecision:
        return self._known[txid][1]

    def unfinished(self) -> list[DecisionRecord]:
        return list(self._stage.run(self._ledger.unfinished()))


class PostgresAgainstModel(LedgerAgainstModel):
    def __init__(self, stage: Stage) -> None:
        super().__init__()
        stage.empty()
        self.machine: Any = Rows(stage)

    @rule()
    def restart(self) -> None:
        """Rows stay where they are."""

    @invariant()
    def verdicts_agree(self) -> None:
        txids = [
            TxId(number, nonce, seq)
            for number, known in self.model.sessions.items()
            for nonce in (known.nonce, "e" * 16)
            for seq in range(1, 8)
        ]
        self.machine.look_up(txids)
        super().verdicts_agree()


def test_the_postgresql_ledger_against_the_model(postgres: Server) -> None:
    """Broken if a sequence of commands exists after which rows tell something else than the rules say."""
    stage = Stage(postgres)

    class OnStage(PostgresAgainstModel):
        def __init__(self) -> None:
            super().__init__(stage)

    try:
        run_state_machine_as_test(
            OnStage,
            settings=settings(
                max_examples=12,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        stage.close()


def test_a_lost_session_is_an_answer(postgres: Server) -> None:
    """Broken if the test above takes an error for something else."""
    stage = Stage(postgres)
    try:
        assert isinstance(Rows(stage).apply(c.KeepAlive(77, "0" * 16, 1)), SessionLost)
    finally:
        stage.close()
