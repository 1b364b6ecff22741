"""Two databases, a story of five transactions, and what is looked at after the ledger was damaged."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import column
from undoubt import wiring
from undoubt.config import Settings, load
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.contract import Ledger, Session, record_of
from undoubt.doctor.examine import examine
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Decision, Evidence, Settled
from undoubt.participants.findings import Severity
from undoubt.participants.ids import Gid, Protocol, SessionKey
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.settings import ParticipantSettings
from undoubt.recovery.operator.survey import survey
from undoubt.recovery.service import RecoveryService

NAMES = ("orders", "payments")
TTL_S = 600.0
COMMITTED, PREPARED, ROLLED_BACK = "committed", "prepared", "rolled back"

Run = Callable[["World"], Awaitable["Told"]]


@dataclass(frozen=True)
class Case:
    name: str
    run: Run


CASES: list[Case] = []


def case(name: str) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        CASES.append(Case(name, run))
        return run

    return add


@dataclass
class Told:
    """What came of a case. ``states``: of each transaction's branches in the end, ``stands``: what was said
    of those that are prepared."""

    split: int = 0
    false_proofs: int = 0
    silent: int = 0
    led_to_verb: int = 0
    said: str = ""
    states: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def bad(self) -> bool:
        return bool(self.split or self.false_proofs or self.silent)


class Servers:
    """A server for each participant; the ledgers in PostgreSQL are in that of the first."""

    def __init__(self) -> None:
        self.servers = {
            name: EmbeddedServer({"max_prepared_transactions": "100"}, durable=False) for name in NAMES
        }
        self.count = 0

    async def __aenter__(self) -> Servers:
        for server in self.servers.values():
            await server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self.servers.values():
            await server.close()


class World:
    """Of one case."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self.servers = servers
        self.folder = folder
        self.dsns: dict[str, str] = {}
        self.story: dict[str, tuple[Decision | None, list[Gid]]] = {}
        self._participants: dict[str, PostgresParticipant] = {}
        self._seq = 0

    async def build(self) -> None:
        self.folder.mkdir()
        self.servers.count += 1
        for name, server in self.servers.servers.items():
            self.dsns[name] = await server.create_database(f"bank{self.servers.count}")
            await self.sql(name, "create table note (name text primary key)")

    async def close(self) -> None:
        await self._let_go()
        for name in self.dsns:
            for gid in await self.prepared(name):
                await self.sql(name, f"rollback prepared '{gid}'")

    async def _let_go(self) -> None:
        participants, self._participants = self._participants, {}
        for participant in participants.values():
            await participant.close()

    def settings(self, ledger: dict[str, Any]) -> Settings:
        participants = {name: {"dsn": dsn} for name, dsn in self.dsns.items()}
        return load({"ledger": ledger, "participants": participants}, env={})

    async def sql(self, name: str, statement: str) -> list[Any]:
        return await column(self.dsns[name], statement)

    async def prepared(self, name: str) -> list[str]:
        return await self.sql(
            name, "select gid from pg_prepared_xacts where database = current_database() order by gid"
        )

    async def tell(self, ledger: Ledger, copy: Callable[[], Awaitable[Ledger]]) -> Ledger:
        """The story. ``copy`` takes the copy, and gives the ledger to go on with; the last one is returned,
        still open."""
        session = await ledger.open_session("shop", TTL_S)
        await self._transaction(ledger, session, "before", Decision.COMMIT, NAMES)
        await ledger.finish([session.txid(self._seq)])
        ledger = await copy()
        await self._transaction(ledger, session, "half", Decision.COMMIT, ("payments",))
        await self._transaction(ledger, session, "whole", Decision.COMMIT, ())
        await self._transaction(ledger, session, "open", None, ())
        later = await ledger.open_session("later", TTL_S)
        await self._transaction(ledger, later, "later", Decision.COMMIT, ("payments",))
        await self._let_go()
        return ledger

    async def _transaction(
        self,
        ledger: Ledger,
        session: Session,
        name: str,
        decision: Decision | None,
        applied: tuple[str, ...],
    ) -> None:
        """Prepared in both databases, then decided, then applied in some."""
        self._seq += 1
        key = SessionKey(session.key)
        txid = session.txid(self._seq)
        evidence: dict[Gid, Evidence | None] = {}
        for number, place in enumerate(NAMES, 1):
            gid = Gid(ledger.ledger_id, Protocol.TWO_PHASE, txid, number, place).tagged(key)
            branch = await self._participant(place, ledger).begin(gid, timeout_s=60, key=key)
            await branch.connection.execute(f"insert into note values ('{name}')")
            evidence[gid] = (await branch.prepare()).evidence
            await branch.release()
        self.story[name] = (decision, list(evidence))
        if decision is None:
            return
        records = [record_of(gid, found) for gid, found in evidence.items()]
        assert await ledger.decide(txid, decision, records) is decision
        for gid, found in evidence.items():
            if gid.participant in applied:
                settled = await self._participant(gid.participant, ledger).settle(gid, Decision.COMMIT, found)
                assert settled is Settled.APPLIED

    def _participant(self, name: str, ledger: Ledger) -> PostgresParticipant:
        if name not in self._participants:
            settings = ParticipantSettings(dsn=self.dsns[name])
            self._participants[name] = PostgresParticipant(name, settings, ledger_id=ledger.ledger_id)
        return self._participants[name]

    async def look(self, settings: Settings, *, create: bool = False) -> Told:
        """Start again: recovery as an application has it, then what an operator sees; judged."""
        heard = _Heard()
        refused, stands = "", {}
        try:
            stands = await self._recover(settings, create=create)
        except LedgerError as error:
            refused = str(error)
        finally:
            words = heard.end()
        findings = await examine(settings, older_than_s=300.0)
        content = all(one.severity in {Severity.OK, Severity.WARNING} for one in findings)
        return await self._judge(refused, words, stands, content=content)

    async def _recover(self, settings: Settings, *, create: bool) -> dict[str, str]:
        """The standing of each branch that is prepared, before or after recovery has acted on it."""
        ledger = await open_ledger(
            settings.ledger, create=create or (lambda: wiring.nothing_left(settings)), serves=True
        )
        participants = wiring.registry(settings, ledger.ledger_id)
        try:
            async with RecoveryService(ledger, participants, settings.recovery, always=True) as service:
                lines = (await service.run_once()).lines + (await service.run_once()).lines
            seen = await survey(ledger, participants)
        finally:
            await participants.close()
            await ledger.close()
        stands = {line.gid: line.standing for line in lines if line.standing is not None}
        return stands | {str(one.branch.gid): str(one.standing) for one in seen.found}

    async def _judge(self, refused: str, words: str, stands: dict[str, str], *, content: bool) -> Told:
        told = Told(said=refused or words)
        lost, decide = False, True
        for name, (decision, gids) in self.story.items():
            states = [await self._state(name, gid) for gid in gids]
            told.states[name] = tuple(states)
            told.split += {COMMITTED, ROLLED_BACK} <= set(states)
            said = {stands.get(str(gid), "") for gid in gids}
            if decision is Decision.COMMIT:
                told.false_proofs += "aborted" in said or (set(states) == {ROLLED_BACK})
                left = [gid for gid, state in zip(gids, states, strict=True) if state == PREPARED]
                lost = lost or bool(left)
                shown = {"forgotten", "lost_ledger"}
                decide = decide and all(stands.get(str(gid)) in shown for gid in left)
            else:
                told.false_proofs += "committed" in said
        named = bool(refused) or bool(words) or decide
        told.silent += lost and (content or not named)
        return told

    async def _state(self, name: str, gid: Gid) -> str:
        if str(gid) in await self.prepared(gid.participant):
            return PREPARED
        rows = await self.sql(gid.participant, f"select name from note where name = '{name}'")
        return COMMITTED if rows else ROLLED_BACK


class _Heard(logging.Handler):
    """What is logged meanwhile, of warnings and worse, about a ledger that is not what it was."""

    WORDS = ("was set back", "lacks entry", "incarnation", "removed or replaced")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if any(word in line for word in self.WORDS):
            self.lines.append(line)

    def end(self) -> str:
        logging.getLogger().removeHandler(self)
        return "; ".join(self.lines)
