"""The calls of the contract about idempotency keys.

A key is claimed by one key of etcd, which names its transaction. Whether the claim still holds follows from
the records of that transaction, so a decision or the end of a session frees a key without writing it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from undoubt.coordinator.errors import Impostor, LedgerUnavailable, OutcomeUnknown, SessionLost
from undoubt.coordinator.ledger.commands import (
    ClaimKey,
    CommandRefused,
    CommitKey,
    Decide,
    FreeKey,
    check_given,
    check_key,
)
from undoubt.coordinator.ledger.contract import BranchRecord, SessionState
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.decisions import value_of
from undoubt.coordinator.ledger.etcd.keyspace import KeyValueRecord, LedgerClock, encode
from undoubt.coordinator.ledger.etcd.recorded import answer_to, keys_about, recorded
from undoubt.coordinator.ledger.etcd.sessions import Operations, Sessions
from undoubt.coordinator.ledger.etcd.store import EtcdStore, KeySnapshot
from undoubt.coordinator.ledger.keys import KeyHolder, KeyState
from undoubt.coordinator.ledger.rules import Names
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import Protocol, TxId

ATTEMPTS_MAX = 100
"""How often a key may get another holder while one call looks at it."""


class _Moved(Exception):  # noqa: N818 - caught in this module
    """The key has another holder than the one whose records were read."""


class EtcdKeys:
    """The part of :class:`~undoubt.coordinator.ledger.etcd.ledger.EtcdLedger` that is about keys."""

    _store: EtcdStore
    _sessions: Sessions
    _names: Names

    async def claim_key(self, txid: TxId, key: str, proof: str) -> KeyHolder:
        check_given(ClaimKey(txid, key))
        self._check_proof(txid, key, proof)
        keys = self._store.keys
        for _ in range(ATTEMPTS_MAX):
            expected = await self._holder_of(key)

            def claimed(
                snapshot: KeySnapshot, expected: TxId | None = expected
            ) -> tuple[Operations, KeyHolder]:
                holder = self._holder(snapshot, key, expected)
                if holder is not None:
                    return [], holder
                standing = self._sessions.standing(snapshot, txid.session, txid.nonce)
                if standing.presumed(txid.seq) or snapshot[keys.decision(txid)] is not None:
                    raise SessionLost(f"transaction {txid} has ended, or its session {txid.session} has")
                other = snapshot[keys.key_of(txid)]
                if other is not None and other.decode() != key:
                    raise CommandRefused(f"transaction {txid} has another key, {other.decode()!r}")
                return [
                    messages.put(keys.key(key), encode(KeyValueRecord(txid))),
                    messages.put(keys.key_of(txid), key.encode()),
                ], KeyHolder(txid, KeyState.RUNNING)

            try:
                return await self._store.change(self._asked(key, txid, expected), claimed)
            except _Moved:
                continue
        raise LedgerUnavailable(f"key {key!r} was claimed by others all the time")

    async def key_holder(self, key: str) -> KeyHolder | None:
        check_key(key)
        for _ in range(ATTEMPTS_MAX):
            expected = await self._holder_of(key)
            snapshot = await self._store.read(self._asked(key, expected))
            try:
                return self._holder(snapshot, key, expected)
            except _Moved:
                continue
        raise LedgerUnavailable(f"key {key!r} was claimed by others all the time")

    async def commit_key(
        self, txid: TxId, key: str, proof: str, result: bytes, branches: Sequence[BranchRecord]
    ) -> Decision:
        command = CommitKey(txid, key, result, tuple(branches), time.time())
        check_given(command)
        self._check_proof(txid, key, proof)
        self._names.check(txid, Protocol.TWO_PHASE, Decision.COMMIT, branches, tagged=bool(branches))
        decide = Decide(txid, Protocol.TWO_PHASE, Decision.COMMIT, command.branches, command.at)
        keys = self._store.keys

        def committed(snapshot: KeySnapshot) -> tuple[Operations, Decision | UndoubtError]:
            standing = self._sessions.standing(snapshot, txid.session, txid.nonce)
            if standing.state is None:
                return [], _unknown(txid)
            found = recorded(keys, snapshot, txid)
            if found is not None:
                return [], answer_to(decide, found)
            if standing.state is SessionState.RESTORED:
                return [], OutcomeUnknown(txid, "its session is from before the ledger was set back")
            claim = snapshot.get(keys.key(key), KeyValueRecord)
            holds = claim is not None and claim.txid == txid and not standing.presumed(txid.seq)
            decision = Decision.COMMIT if holds else Decision.ABORT
            written = [
                messages.put(keys.decision(txid), encode(value_of(decide, decision))),
                messages.put(keys.decided(command.at, txid)),
            ]
            if branches:  # otherwise no participant has anything to apply
                written.append(messages.put(keys.unfinished(txid)))
            if holds:
                kept_ms = (snapshot.get(keys.clock, LedgerClock) or LedgerClock()).time_ms
                written += [
                    messages.put(keys.key(key), encode(KeyValueRecord(txid, result, kept_ms))),
                    messages.put(keys.key_age(kept_ms, key)),
                ]
            return written, decision

        asked = self._asked(key, txid)
        answer = await self._sessions.change_in(txid, asked, committed, looked=[keys.clock])
        if isinstance(answer, UndoubtError):
            raise answer
        return answer

    async def free_key(self, txid: TxId, key: str, proof: str) -> Decision:
        check_given(FreeKey(txid, key))
        self._check_proof(txid, key, proof)
        now = time.time()
        keys = self._store.keys
        decide = Decide(txid, Protocol.TWO_PHASE, Decision.ABORT, (), now)

        def freed(snapshot: KeySnapshot) -> tuple[Operations, Decision | UndoubtError]:
            standing = self._sessions.standing(snapshot, txid.session, txid.nonce)
            if standing.state is None:
                return [], _unknown(txid)
            found = recorded(keys, snapshot, txid)
            if found is not None:
                return [], found.decision
            if standing.state is SessionState.RESTORED:
                return [], OutcomeUnknown(txid, "its session is from before the ledger was set back")
            claim = snapshot.get(keys.key(key), KeyValueRecord)
            if claim is None or claim.txid != txid:
                return [], Decision.ABORT
            return [
                messages.put(keys.decision(txid), encode(value_of(decide, Decision.ABORT))),
                messages.put(keys.decided(now, txid)),
                messages.delete(keys.key(key)),
                messages.delete(keys.key_of(txid)),
            ], Decision.ABORT

        answer = await self._sessions.change_in(txid, self._asked(key, txid), freed)
        if isinstance(answer, UndoubtError):
            raise answer
        return answer

    async def _holder_of(self, key: str) -> TxId | None:
        """The transaction that has claimed ``key``, whether or not the claim still holds."""
        name = self._store.keys.key(key)
        record = (await self._store.read([name])).get(name, KeyValueRecord)
        return None if record is None else record.txid

    def _asked(self, key: str, *txids: TxId | None) -> list[bytes]:
        """The keys about an idempotency key, and about transactions."""
        keys = self._store.keys
        asked = [keys.key(key)]
        for txid in filter(None, txids):
            of_session = self._sessions.keys_of(txid.session, txid.nonce)
            asked += [*keys_about(keys, txid), keys.key_of(txid), *of_session]
        return asked

    def _holder(self, snapshot: KeySnapshot, key: str, expected: TxId | None) -> KeyHolder | None:
        """Who has ``key``; None if it is free. Raises :class:`_Moved` if ``expected`` has not claimed it."""
        keys = self._store.keys
        record = snapshot.get(keys.key(key), KeyValueRecord)
        if (None if record is None else record.txid) != expected:
            raise _Moved
        if record is None:
            return None
        txid = record.txid
        if record.result is not None:
            return KeyHolder(txid, KeyState.COMMITTED, record.result)
        found = recorded(keys, snapshot, txid)
        if found is not None:
            committed = found.decision is Decision.COMMIT
            return KeyHolder(txid, KeyState.COMMITTED) if committed else None
        standing = self._sessions.standing(snapshot, txid.session, txid.nonce)
        if not standing.presumed(txid.seq):
            return KeyHolder(txid, KeyState.RUNNING)
        lost = standing.state is SessionState.RESTORED and txid.seq >= standing.floor
        return KeyHolder(txid, KeyState.LOST) if lost else None

    def _check_proof(self, txid: TxId, key: str, proof: str) -> None:
        if not self._names.proves_key(txid, key, proof):
            raise Impostor(f"nothing proves that transaction {txid} may use a key: its proof is wrong")


def _unknown(txid: TxId) -> OutcomeUnknown:
    return OutcomeUnknown(txid, "the ledger does not know its session, or has dropped it")
