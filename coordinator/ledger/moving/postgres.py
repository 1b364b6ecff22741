"""A PostgreSQL ledger as a place of a move.

Every statement of the ledger reads its table ``ledger``. The seal takes that table's ACCESS EXCLUSIVE lock,
which waits for all running statements, and renames the table: what waits for the lock, and what comes later,
fails, whatever its snapshot. So nothing is recorded after the seal, by any process, of any version. A ledger
that is arriving is made in one transaction, with the table under that name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import sqlalchemy

from undoubt.coordinator.errors import MoveRefused
from undoubt.coordinator.ledger import schema
from undoubt.coordinator.ledger.contract import Act, SessionState
from undoubt.coordinator.ledger.keys import KeptKey, Keys, StoredKeys
from undoubt.coordinator.ledger.lock_queue import LockTable
from undoubt.coordinator.ledger.machine import fingerprint
from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase, MoveStatus, lives
from undoubt.coordinator.ledger.move_rules import (
    not_in,
    occupied,
    other_move,
    sessions_open,
    settled_mark,
)
from undoubt.coordinator.ledger.moving.image import LedgerImage, canonical
from undoubt.coordinator.ledger.postgres import codec, tables
from undoubt.coordinator.ledger.postgres.decisions import decode_branches, encode_branches
from undoubt.coordinator.ledger.state import LedgerState, PrecommitRecord, SessionBook
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId
from undoubt.participants.invariant import invariant
from undoubt.participants.redact import redact

T = TypeVar("T")
SqlRows = Iterable[Sequence[Any]]

LIVE, SEALED = "undoubt_ledger.ledger", "undoubt_ledger.sealed_ledger"
_SEAL = f"alter table {LIVE} rename to sealed_ledger"
_UNSEAL = f"alter table {SEALED} rename to ledger"
_DURABLE = """
    select case when pg_catalog.current_setting('synchronous_commit')
                     operator(pg_catalog.=) any (array['off', 'local', 'remote_write'])
                then pg_catalog.set_config('synchronous_commit', 'on', true) end
"""


class PostgresPlace:
    def __init__(self, settings: LedgerSettings) -> None:
        self.url = redact(settings.url)
        self._settings = settings

    async def look(self) -> MoveStatus | None:
        return await self._run(lambda connection: _Ledger(connection, self.url).look())

    async def seal(self, mark: MoveMark) -> None:
        await self._run(lambda connection: _Ledger(connection, self.url).seal(mark))

    async def settle(self, move: str, phase: MovePhase | None) -> None:
        await self._run(lambda connection: _Ledger(connection, self.url).settle(move, phase))

    async def read(self) -> LedgerImage:
        return await self._run(lambda connection: _Ledger(connection, self.url).read())

    def fitted(self, image: LedgerImage) -> LedgerImage:
        """The table of acts has no column for a certificate: it is noted beside the user."""
        acts = {act.id: _without_certificate(act) for act in image.state.acts.values()}
        return LedgerImage(replace(image.state, acts=acts), image.finished)

    async def write(self, image: LedgerImage) -> None:
        await self._run(lambda connection: _Ledger(connection, self.url).write(image))

    async def _run(self, work: Callable[[sqlalchemy.Connection], T]) -> T:
        """Call ``work`` in one transaction. Raises ``LedgerError``."""

        def worked(connection: sqlalchemy.Connection, _: str) -> T:
            connection.exec_driver_sql(_DURABLE)
            return work(connection)

        return await asyncio.to_thread(tables.in_transaction, self._settings, worked)

    async def close(self) -> None:
        """Nothing is open between two calls."""


def _without_certificate(act: Act) -> Act:
    if not act.certificate:
        return act
    who = f"{act.who}, certificate {act.certificate}"
    return msgspec.structs.replace(act, who=who, certificate="").clipped()


class _Ledger:
    """The tables of a ledger in one transaction."""

    def __init__(self, connection: sqlalchemy.Connection, url: str) -> None:
        self._connection = connection
        self._url = url

    def _rows(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        found = self._connection.execute(sqlalchemy.text(statement), parameters)
        return [tuple(row) for row in found]

    def _do(self, statement: str, **parameters: Any) -> None:
        self._connection.execute(sqlalchemy.text(statement), parameters)

    def mark(self) -> MoveMark | None:
        for ident, place, at, phase in self._rows("select id, place, at, phase from undoubt_ledger.move"):
            return MoveMark(ident, place, at, MovePhase(phase))
        return None

    def _set(self, mark: MoveMark | None) -> None:
        self._do("delete from undoubt_ledger.move")
        if mark is not None:
            about = msgspec.to_builtins(msgspec.structs.asdict(mark))
            self._do(
                "insert into undoubt_ledger.move (id, place, at, phase) values (:id, :place, :at, :phase)",
                **about,
            )

    def look(self) -> MoveStatus | None:
        revision = tables.revision(self._connection)
        if revision is None:
            return None
        schema.POSTGRES.check(revision, f"ledger {self._url}")
        mark = self.mark()
        place = LIVE if lives(mark) else SEALED
        ((ledger_id, following),) = self._rows(f"select ledger_id, next_session from {place}")  # noqa: S608 - one of two
        return MoveStatus(ledger_id, mark, following == 1 and mark is None)

    def _there(self) -> MoveStatus:
        if (found := self.look()) is None:
            raise MoveRefused(f"there is no ledger at {self._url}")
        return found

    def seal(self, mark: MoveMark) -> None:
        found = self._there().mark
        if found is not None and not lives(found):
            if found.id != mark.id:
                raise other_move(found)
            return
        self._do(f"lock table {LIVE} in access exclusive mode")
        open_ = self._rows(
            "select id, name from undoubt_ledger.session"
            " where state operator(pg_catalog.=) 'open' order by id"
        )
        if open_:
            raise sessions_open([f"{session} ({name})" for session, name in open_])
        self._set(mark)
        self._do(_SEAL)

    def settle(self, move: str, phase: MovePhase | None) -> None:
        found = self._there().mark
        if phase is None:
            if found is None or lives(found):
                return
            if (found.id, found.phase) != (move, MovePhase.SEALED):
                raise other_move(found)
            self._set(None)
            self._do(_UNSEAL)
            return
        settled = settled_mark(found, move, phase)
        if settled is None or found is None:
            raise not_in(found, move, phase)
        if not lives(found) and lives(settled):
            self._do(_UNSEAL)
        self._set(settled)

    # Reading.

    def read(self) -> LedgerImage:
        mark = self._there().mark
        place = LIVE if lives(mark) else SEALED
        ((ledger_id, incarnation, following, token, token_incarnation),) = self._rows(
            f"select ledger_id, incarnation, next_session, next_token, token_incarnation from {place}"  # noqa: S608
        )
        ((time_ms,),) = self._rows("select time_ms from undoubt_ledger.clock")
        ((secret,),) = self._rows("select secret from undoubt_ledger.secret")
        state = LedgerState(
            ledger_id,
            incarnation,
            following,
            time_ms,
            self._sessions(),
            secret=bytes(secret),
            locks=LockTable(token, token_incarnation),
            move=mark,
        )
        image = LedgerImage(state)
        self._decisions(image)
        self._precommitted(state, image)
        for row in self._rows(
            "select gid, kind, decision, found_at, note, forgotten, forgotten_by"
            "  from undoubt_ledger.heuristic"
        ):
            heuristic = codec.heuristic(*row)
            state.heuristics[str(heuristic.gid)] = heuristic
        for ident, verb, subject, at, who, note, result in self._rows(
            "select id, verb, subject, at, who, note, result from undoubt_ledger.act order by number"
        ):
            state.acts[ident] = Act(ident, verb, subject, at, who, note, result)
        self._keys(state)
        image.state = canonical(state)
        return image

    def _sessions(self) -> dict[int, SessionBook]:
        found = self._rows(
            "select id, nonce, name, ttl_ms, state, floor, closed_ms, tagged, agent"
            "  from undoubt_ledger.session where state operator(pg_catalog.<>) 'dropped'"
        )
        return {
            number: SessionBook(
                number,
                nonce,
                name,
                ttl_ms,
                state=SessionState(state),
                floor=floor,
                closed_ms=closed_ms,
                tagged=tagged,
                agent=None if agent is None else codec.decode_agent(agent),
            )
            for number, nonce, name, ttl_ms, state, floor, closed_ms, tagged, agent in found
        }

    def _decisions(self, image: LedgerImage) -> None:
        state = image.state
        for *row, unknown, unfinished in self._rows(
            "select d.session, d.nonce, d.seq, d.protocol, d.decision, d.branches, d.decided_at,"
            "       d.coordinator, d.cause, d.fingerprint, u.seq is not null"
            "  from undoubt_ledger.decision d"
            "  left join undoubt_ledger.unfinished u on u.session operator(pg_catalog.=) d.session"
            "       and u.seq operator(pg_catalog.=) d.seq"
        ):
            record = codec.decision_record(*row)
            txid = record.txid
            book = state.sessions.get(txid.session)
            if unfinished:
                state.unfinished[txid] = record
                continue
            if unknown is None:
                image.finished[txid] = record
            if book is not None and book.nonce == txid.nonce:
                known = fingerprint(record.branches) if unknown is None else unknown
                book.finish(txid.seq, record.decision, known)

    def _precommitted(self, state: LedgerState, image: LedgerImage) -> None:
        for session, seq, nonce, protocol, branches in self._rows(
            "select session, seq, nonce, protocol, branches from undoubt_ledger.precommitted"
        ):
            txid, book = TxId(session, nonce, seq), state.sessions.get(session)
            decided = txid in state.unfinished or txid in image.finished
            if book is not None and not decided and book.finished(seq) is None:
                listed = decode_branches(branches)
                state.precommitted[txid] = PrecommitRecord(txid, Protocol(protocol), listed, 0.0, book.name)

    def _keys(self, state: LedgerState) -> None:
        """Committed keys, and those whose transaction may still have committed: it is undecided in a session
        that was closed by a restore."""
        claimed, kept = [], []
        for key, session, nonce, seq, committed, result, kept_ms in self._rows(
            "select key, session, nonce, seq, committed, result, kept_ms from undoubt_ledger.key"
        ):
            txid, book = TxId(session, nonce, seq), state.sessions.get(session)
            decided = state.unfinished.get(txid)
            decision = decided.decision if decided is not None else book and book.finished(seq)
            if committed or decision is Decision.COMMIT:
                at = state.time_ms if kept_ms is None else kept_ms
                kept.append(KeptKey(key, txid, bytes(result), at))
            elif decision is None and book is not None and book.may_have_committed(seq):
                claimed.append((key, txid))
        kept.sort(key=lambda each: (each.kept_ms, each.key))
        state.keys = Keys.loaded(StoredKeys(sorted(claimed), kept))

    # Writing.

    def write(self, image: LedgerImage) -> None:
        state, mark = image.state, image.state.move
        invariant(mark is not None, "an image that is moved has no mark")
        found = self.look()
        if found is not None:
            if not found.takes(state.ledger_id):
                raise occupied(found.ledger_id)
            for table in tables.names(self._connection):
                self._connection.exec_driver_sql(f'drop table undoubt_ledger."{table}" cascade')
        tables.make(self._connection, state.ledger_id)
        self._do(
            f"update {LIVE} set incarnation = :incarnation, next_session = :following, next_token = :token,"  # noqa: S608
            " token_incarnation = :token_incarnation",
            incarnation=state.incarnation,
            following=state.next_session,
            token=state.locks.next_token,
            token_incarnation=state.locks.incarnation,
        )
        self._do("update undoubt_ledger.clock set time_ms = :time_ms", time_ms=state.time_ms)
        self._do("update undoubt_ledger.secret set secret = :secret", secret=state.secret)
        self._copy_sessions(image)
        self._copy_decisions(image)
        self._copy_rest(state)
        self._set(mark)
        self._do(_SEAL)

    def _copy(self, table: str, columns: str, rows: SqlRows) -> None:
        driver = self._connection.connection.driver_connection
        invariant(driver is not None, "the connection is open")
        if driver is not None:
            statement = f"copy undoubt_ledger.{table} ({columns}) from stdin"
            with driver.cursor() as cursor, cursor.copy(statement) as copy:
                for row in rows:
                    copy.write_row(row)

    def _copy_sessions(self, image: LedgerImage) -> None:
        state = image.state
        rows: list[Sequence[Any]] = [
            (
                *(book.id, book.nonce, book.name, book.ttl_ms, str(book.state), book.floor, state.time_ms),
                *(book.closed_ms, book.tagged, codec.encode_agent(book.agent)),
            )
            for book in state.sessions.values()
        ]
        gone = {
            record.txid.session: (record.txid.nonce, record.coordinator)
            for record in image.finished.values()
            if record.txid.session not in state.sessions
        }
        rows += [
            (session, nonce, name, 0, "dropped", 1, state.time_ms, state.time_ms, True, None)
            for session, (nonce, name) in sorted(gone.items())
        ]
        columns = "id, nonce, name, ttl_ms, state, floor, renewed_ms, closed_ms, tagged, agent"
        self._copy("session", columns, rows)

    def _copy_decisions(self, image: LedgerImage) -> None:
        state = image.state

        def decisions() -> Iterable[Sequence[Any]]:
            for record in (*state.unfinished.values(), *image.finished.values()):
                txid = record.txid
                yield (
                    *(txid.session, txid.seq, txid.nonce, str(record.protocol), str(record.decision)),
                    *(encode_branches(record.branches), record.decided_at, record.coordinator, record.cause),
                    None,
                )
            for book in state.sessions.values():
                for decision, ranges in ((Decision.COMMIT, book.committed), (Decision.ABORT, book.aborted)):
                    for first, last in ranges.pairs():
                        for seq in range(first, last + 1):
                            if TxId(book.id, book.nonce, seq) not in image.finished:
                                about = (book.id, seq, book.nonce, str(Protocol.TWO_PHASE), str(decision))
                                yield (*about, "[]", 0.0, book.name, "", book.fingerprint(seq))

        columns = (
            "session, seq, nonce, protocol, decision, branches, decided_at, coordinator, cause, fingerprint"
        )
        self._copy("decision", columns, decisions())
        self._copy("unfinished", "session, seq", ((txid.session, txid.seq) for txid in state.unfinished))

    def _copy_rest(self, state: LedgerState) -> None:
        self._copy(
            "precommitted",
            "session, seq, nonce, protocol, branches, coordinator",
            (
                (
                    *(noted.txid.session, noted.txid.seq, noted.txid.nonce, str(noted.protocol)),
                    *(encode_branches(noted.branches), noted.coordinator),
                )
                for noted in state.precommitted.values()
            ),
        )
        self._copy(
            "heuristic",
            "gid, session, seq, kind, decision, found_at, note, forgotten, forgotten_by",
            (
                (
                    *(gid, each.gid.txid.session, each.gid.txid.seq, str(each.kind)),
                    *(None if each.decision is None else str(each.decision), each.found_at, each.note),
                    *(each.forgotten, each.forgotten_by),
                )
                for gid, each in state.heuristics.items()
            ),
        )
        self._copy(
            "act",
            "id, verb, subject, at, who, note, result",
            (
                (act.id, act.verb, act.subject, act.at, act.who, act.note, act.result)
                for act in state.acts.values()
            ),
        )
        claimed = [
            (key, txid.session, txid.nonce, txid.seq, False, b"", None)
            for key, txid in state.keys.claimed.items()
        ]
        kept = [
            (each.key, each.txid.session, each.txid.nonce, each.txid.seq, True, each.result, each.kept_ms)
            for each in state.keys.kept.values()
        ]
        self._copy("key", "key, session, nonce, seq, committed, result, kept_ms", [*claimed, *kept])
