"""Bounds what a ledger takes in etcd: deletes the details of finished decisions, and keeps a summary of them.

Only decisions are summarized that no transaction of :mod:`.decisions` can overlook: those of a session that
has ended, or below its floor. The summary is written in the transaction that deletes the details; every
change that depends on a decision compares both keys."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from undoubt.coordinator.ledger.contract import SessionInfo, SessionState
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.keyspace import (
    SUMMARIZED,
    UNSIGNED_MAX,
    DecisionValue,
    SummaryValue,
    decode,
    encode,
    number,
    value_of,
)
from undoubt.coordinator.ledger.etcd.sessions import Sessions
from undoubt.coordinator.ledger.etcd.store import EtcdStore
from undoubt.coordinator.ledger.machine import fingerprint
from undoubt.participants.ids import TxId

DETAILS_MAX = 100_000
"""Most finished decisions whose details are kept: about 100 MB. The oldest sessions lose theirs first."""
TOGETHER = 60
"""Decisions that one transaction summarizes: each has two compares, and two keys to delete."""


class _Finished(NamedTuple):
    """A finished decision: its transaction, and the revision at which its key was written."""

    txid: TxId
    value: DecisionValue
    revision: int


class Summaries:
    def __init__(self, store: EtcdStore, sessions: Sessions) -> None:
        self._store = store
        self._sessions = sessions

    async def summarize(self, history_s: float, *, most: int = DETAILS_MAX) -> int:
        """Delete the details of finished decisions that are older than ``history_s`` by the wall clock, which
        counts for details only, and of the oldest ones if there are more than ``most``. Returns their
        number."""
        listed = await self._sessions.infos()
        by_number = {info.id: info for info in listed}
        decided_before = time.time() - history_s
        count = 0
        async for session, chunks in self._old(decided_before):
            if (info := by_number.get(session)) is not None:
                for chunk in chunks:
                    count += await self._summarize(info, chunk, decided_before=decided_before)
        surplus = await self._store.count(self._store.keys.all("decision")) - most
        for info in listed:
            if surplus <= 0:
                break
            async for chunk in self._chunks(info.id):
                done = await self._summarize(info, chunk, most=surplus)
                surplus -= done
                count += done
                if surplus <= 0:
                    break
        return count

    async def _old(self, decided_before: float) -> AsyncIterator[tuple[int, list[int]]]:
        """Sessions with decisions that are older, and the numbers of these decisions' summaries; a page of
        decisions at a time."""
        keys, more = self._store.keys, True
        last = keys.decided(decided_before, TxId(UNSIGNED_MAX, "", UNSIGNED_MAX))
        while more:
            page, more = await self._store.pages(keys.all("decided"), after=last, keys_only=True)
            chunks: dict[int, set[int]] = {}
            for kv in page:
                last = kv.key
                session, seq = keys.decided_numbers(kv.key)
                chunks.setdefault(session, set()).add((seq - 1) // SUMMARIZED)
            for session, found in sorted(chunks.items()):
                yield session, sorted(found)

    async def _chunks(self, session: int) -> AsyncIterator[int]:
        """The numbers of the summaries of all decisions of a session that have details."""
        prefix = self._store.keys.all("decision", session)
        last = b""
        while True:
            page, _ = await self._store.pages(prefix, after=last, keys_only=True, limit=1)
            if not page:
                return
            chunk = (value_of(page[0].key[-16:]) - 1) // SUMMARIZED
            last = prefix + number((chunk + 1) * SUMMARIZED)
            yield chunk

    async def _summarize(
        self, info: SessionInfo, chunk: int, *, decided_before: float = math.inf, most: int = SUMMARIZED
    ) -> int:
        """Summarize at most ``most`` finished decisions of one summary; returns their number."""
        keys = self._store.keys
        first, beyond = (number(seq) for seq in (chunk * SUMMARIZED + 1, (chunk + 1) * SUMMARIZED + 1))
        done = 0
        while done < most:
            prefix = keys.all("decision", info.id)
            page = await self._range(prefix + first, prefix + beyond, limit=TOGETHER)
            if not page:
                break
            # Read after the decisions: one that is not among them is finished.
            prefix = keys.all("unfinished", info.id)
            unfinished = {kv.key[-16:] for kv in await self._range(prefix + first, prefix + beyond)}
            first = page[-1].key[-16:] + b"\0"
            some = []
            for kv in page:
                value = decode(kv.value, DecisionValue)
                finished = kv.key[-16:] not in unfinished and value.nonce == info.nonce
                if finished and value.decided_at < decided_before:
                    txid = TxId(info.id, info.nonce, value_of(kv.key[-16:]))
                    some.append(_Finished(txid, value, kv.mod_revision))
            done += await self._replaced(info, some[: most - done])
        return done

    async def _range(self, begin: bytes, end: bytes, limit: int = 0) -> Sequence[messages.KeyValue]:
        asked = messages.Range(begin, end, limit=limit, keys_only=not limit)
        return (await self._store.client.range(asked)).kvs

    async def _replaced(self, info: SessionInfo, some: Sequence[_Finished]) -> int:
        """Replace the details of decisions by a summary, if nothing about them has changed; returns the
        number of those that were replaced."""
        if not some:
            return 0
        store, keys = self._store, self._store.keys
        summary = keys.summary(some[0].txid)
        of_session = self._sessions.keys_of(info.id, info.nonce)
        snapshot = await store.read([summary, *of_session])
        standing = self._sessions.standing(snapshot, info.id, info.nonce)
        if standing.state is None:
            return 0
        compare = [*store.fence(), *snapshot.unchanged([summary])]
        if standing.state is SessionState.OPEN:
            some = [each for each in some if each.txid.seq < standing.floor]
        elif standing.state is not SessionState.RESTORED:
            compare.append(messages.absent(keys.lease(info.id, info.nonce)))
        if not some:
            return 0
        gone: list[messages.EtcdOperation] = []
        for each in some:
            compare += [
                messages.unchanged(keys.decision(each.txid), each.revision),
                messages.absent(keys.unfinished(each.txid)),
            ]
            gone += [
                messages.delete(keys.decision(each.txid)),
                messages.delete(keys.decided(each.value.decided_at, each.txid)),
            ]
        known = snapshot.get(summary, SummaryValue) or SummaryValue(info.nonce)
        value = known.including(
            (each.txid.seq, each.value.decision, fingerprint(each.value.branches)) for each in some
        )
        operations = [messages.put(summary, encode(value)), *gone]
        answer = await store.client.transact(messages.EtcdTransaction(compare, operations))
        return len(some) if answer.succeeded else 0  # something has changed: the next turn looks again
