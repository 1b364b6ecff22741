"""Queries about transactions: what is decided, what is unfinished, and history in pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from undoubt.coordinator.ledger.commands import Finish, check_given, check_limit
from undoubt.coordinator.ledger.contract import DecisionRecord, Heuristic, RecordedDecision, TransactionInfo
from undoubt.coordinator.ledger.etcd.keyspace import (
    DecisionValue,
    KeyValueRecord,
    PrecommitValue,
    SessionRecord,
    decode,
)
from undoubt.coordinator.ledger.etcd.recorded import Recorded, keys_about, recorded
from undoubt.coordinator.ledger.etcd.sessions import Sessions, Standing, transactions_of
from undoubt.coordinator.ledger.etcd.store import KEYS_MAX, PAGE, EtcdStore
from undoubt.coordinator.ledger.pages import BRANCHES_MAX
from undoubt.coordinator.ledger.rules import verdict_of
from undoubt.participants.ids import TxId


class Looked(NamedTuple):
    """What the ledger has about one transaction, at one revision."""

    standing: Standing
    recorded: Recorded | None
    next_session: int


class Transactions:
    """The part of :class:`~undoubt.coordinator.ledger.etcd.ledger.EtcdLedger` that reads transactions."""

    _store: EtcdStore
    _sessions: Sessions

    async def _looked_up(self, txids: Iterable[TxId]) -> dict[TxId, Looked]:
        """A session and its transactions are read at one revision: a decision that was recorded before the
        session has ended is seen together with that end."""
        keys = self._store.keys
        found: dict[TxId, Looked] = {}
        for txids_read, asked in self._requests(txids):
            snapshot = await self._store.read([keys.next_session, *asked])
            following = snapshot.number(keys.next_session, 1)
            for txid in txids_read:
                standing = self._sessions.standing(snapshot, txid.session, txid.nonce)
                found[txid] = Looked(standing, recorded(keys, snapshot, txid), following)
        return found

    def _requests(self, txids: Iterable[TxId]) -> Iterable[tuple[list[TxId], list[bytes]]]:
        """Transactions and the keys about them, in parts that one read has room for."""
        keys = self._store.keys
        together: list[TxId] = []
        asked: list[bytes] = []
        for (session, nonce), of_one in transactions_of(txids).items():
            of_session = self._sessions.keys_of(session, nonce)
            asked_session = False
            for txid in of_one:
                if len(asked) + len(of_session) + 3 > KEYS_MAX:
                    yield together, asked
                    together, asked, asked_session = [], [], False
                if not asked_session:
                    asked += of_session
                    asked_session = True
                asked += keys_about(keys, txid)
                together.append(txid)
        if together:
            yield together, asked

    async def _unfinished(self, after: TxId | None, limit: int) -> list[DecisionRecord]:
        keys = self._store.keys
        prefix = keys.all("unfinished")
        begin = b"" if after is None else keys.unfinished(after)
        found: list[DecisionRecord] = []
        branches, more = 0, True
        while more and len(found) < limit and branches < BRANCHES_MAX:
            page, more = await self._store.pages(
                prefix, after=begin, keys_only=True, limit=min(limit - len(found), PAGE)
            )
            if not page:
                break
            begin = page[-1].key
            for record in await self._records_of([_numbers(kv.key) for kv in page]):
                if branches >= BRANCHES_MAX:
                    return found
                found.append(record)
                branches += len(record.branches)
        if not found:
            await self._store.read([])  # an empty answer too needs a ledger that lives here
        return found

    async def _records_of(self, numbers: Sequence[tuple[int, int]]) -> list[DecisionRecord]:
        """The decisions on transactions, by the numbers of session and transaction, in that order; without
        those that were deleted meanwhile."""
        keys = self._store.keys
        records = []
        names = await self._names_of({session for session, _ in numbers})
        for at in range(0, len(numbers), KEYS_MAX):
            some = numbers[at : at + KEYS_MAX]
            by_key = {keys.decision(TxId(session, "", seq)): (session, seq) for session, seq in some}
            snapshot = await self._store.read(by_key)
            for key, (session, seq) in by_key.items():
                value = snapshot.get(key, DecisionValue)
                if value is not None:
                    records.append(_record(session, seq, value, names.get((session, value.nonce), "")))
        return records

    async def _names_of(self, sessions: Iterable[int]) -> dict[tuple[int, str], str]:
        """The names of sessions, also of dropped ones."""
        names = {}
        for session in sessions:
            for kind in ("session", "dropped"):
                prefix = self._store.keys.all(kind, session)
                for kv in await self._store.every(prefix):
                    nonce = kv.key.removeprefix(prefix).decode()
                    names[session, nonce] = decode(kv.value, SessionRecord).name
        return names

    async def transaction(self, txid: TxId) -> TransactionInfo | None:
        check_given(Finish((txid,)))
        records = await self._records_of([(txid.session, txid.seq)])
        infos = await self._infos([record for record in records if record.txid == txid])
        return infos[0] if infos else await self._without_details(txid)

    async def _without_details(self, txid: TxId) -> TransactionInfo | None:
        """A transaction that is precommitted and undecided, or of whose decision there is only a summary."""
        keys = self._store.keys
        of_session = self._sessions.keys_of(txid.session, txid.nonce)
        snapshot = await self._store.read([keys.precommit(txid), *keys_about(keys, txid), *of_session])
        noted = snapshot.get(keys.precommit(txid), PrecommitValue)
        standing = self._sessions.standing(snapshot, txid.session, txid.nonce)
        name = "" if standing.record is None else standing.record.name
        found = recorded(keys, snapshot, txid)
        if found is not None and found.details is not None and standing.state is not None:
            return await self.transaction(txid)  # it was decided since its details were looked for
        if found is not None and standing.state is not None:
            verdict = verdict_of(found.decision, standing.state, standing.floor, txid.seq, None)
            heuristics = await self._heuristics_of(txid)
            record = RecordedDecision(str(found.decision))
            return TransactionInfo(
                txid, record, verdict, "", (), None, name, finished=True, heuristics=heuristics
            )
        if noted is None or noted.nonce != txid.nonce:
            return None
        return TransactionInfo(
            txid,
            RecordedDecision.NOT_RECORDED,
            verdict_of(None, standing.state, standing.floor, txid.seq, noted.protocol),
            noted.protocol,
            noted.branches,
            None,
            name,
            finished=False,
            heuristics=(),
            precommitted=True,
        )

    async def transactions(self, *, limit: int, before: TxId | None = None) -> Sequence[TransactionInfo]:
        check_limit(limit)
        marker = None if before is None else await self.transaction(before)
        keys, end = self._store.keys, b""
        if marker is not None and marker.decided_at is not None:
            end = keys.decided(marker.decided_at, marker.txid)
        found: list[TransactionInfo] = []
        while len(found) < limit:
            page, _ = await self._store.pages(
                keys.all("decided"), after=end, keys_only=True, limit=min(limit - len(found), PAGE)
            )
            if not page:
                break
            end = page[-1].key
            numbers = [keys.decided_numbers(kv.key) for kv in page]
            found += await self._infos(await self._records_of(numbers))
        return found

    async def _infos(self, records: Sequence[DecisionRecord]) -> list[TransactionInfo]:
        infos = []
        looked = await self._looked_up(record.txid for record in records)
        unfinished = await self._values("unfinished", records)
        keys = await self._keys_of(records)
        heuristics: dict[int, list[Heuristic]] = {}
        for session in {record.txid.session for record in records}:
            heuristics[session] = await self._heuristics_in(session)
        for record in records:
            txid, standing = record.txid, looked[record.txid].standing
            known = None if standing.state is None else record.decision
            infos.append(
                TransactionInfo(
                    txid,
                    RecordedDecision(str(record.decision)),
                    verdict_of(known, standing.state, standing.floor, txid.seq, record.protocol),
                    record.protocol,
                    record.branches,
                    record.decided_at,
                    record.coordinator,
                    txid not in unfinished,
                    tuple(each for each in heuristics[txid.session] if each.gid.txid == txid),
                    cause=record.cause,
                    key=keys.get(txid, ""),
                )
            )
        return infos

    async def _values(self, kind: str, records: Sequence[DecisionRecord]) -> dict[TxId, bytes]:
        """The values of keys of ``kind``, of those of ``records`` that have one."""
        found: dict[TxId, bytes] = {}
        for at in range(0, len(records), KEYS_MAX):
            some = [record.txid for record in records[at : at + KEYS_MAX]]
            by_key = {self._store.keys.of_transaction(kind, txid): txid for txid in some}
            snapshot = await self._store.read(by_key)
            found |= {txid: value for key, txid in by_key.items() if (value := snapshot[key]) is not None}
        return found

    async def _keys_of(self, records: Sequence[DecisionRecord]) -> Mapping[TxId, str]:
        """The idempotency keys with which transactions have committed."""
        keys = self._store.keys
        found: dict[TxId, str] = {}
        for txid, value in (await self._values("key-of", records)).items():
            name = value.decode()
            kept = (await self._store.read([keys.key(name)])).get(keys.key(name), KeyValueRecord)
            if kept is not None and kept.txid == txid and kept.kept_ms is not None:
                found[txid] = name
        return found

    async def _heuristics_of(self, txid: TxId) -> tuple[Heuristic, ...]:
        return tuple(each for each in await self._heuristics_in(txid.session) if each.gid.txid == txid)

    async def _heuristics_in(self, session: int) -> list[Heuristic]:
        found = []
        for kind in ("heuristic", "forgotten"):
            kvs = await self._store.every(self._store.keys.all(kind, session))
            found += [decode(kv.value, Heuristic) for kv in kvs]
        return sorted(found, key=lambda each: (each.found_at, str(each.gid)))


def _numbers(key: bytes) -> tuple[int, int]:
    """The numbers of session and transaction with which ``key`` ends."""
    session, seq = key.split(b"/")[-2:]
    return int(session, 16), int(seq, 16)


def _record(session: int, seq: int, value: DecisionValue, name: str) -> DecisionRecord:
    txid = TxId(session, value.nonce, seq)
    return DecisionRecord(
        txid, value.protocol, value.decision, value.branches, value.decided_at, name, value.cause
    )
