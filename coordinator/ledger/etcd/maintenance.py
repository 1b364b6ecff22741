"""Elects the leading process, which advances ledger time, notes ended sessions and deletes old keys.

One key (``clock``) names the leader. The leader advances ledger time by the time that its own monotonic clock
measured, and counts up the key's ``beat`` each time. A process that has seen the same beat for
``LEADER_TIMEOUT_S`` of its own clock takes over. No wall clock is compared. If no process leads, ledger time
does not advance, and nothing is deleted; sessions end without it, by etcd's leases.

It is harmless if two processes believe that they lead: only the one in the key advances time, and what is
deleted is compared with the ledger time of the key."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.contract import SessionInfo, SessionState
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.keyspace import (
    DecisionValue,
    KeyValueRecord,
    LedgerClock,
    PrecommitValue,
    SessionRecord,
    above_all,
    decode,
    encode,
    value_of,
)
from undoubt.coordinator.ledger.etcd.locks import EtcdLocks
from undoubt.coordinator.ledger.etcd.sessions import Operations, Sessions
from undoubt.coordinator.ledger.etcd.store import EtcdStore, KeySnapshot
from undoubt.coordinator.ledger.etcd.summaries import DETAILS_MAX, Summaries
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.supervision import Upkeep
from undoubt.participants.ids import TxId, new_nonce

log = logging.getLogger(__name__)

BEAT_INTERVAL_S = 1.0
BEAT_S_MAX = 2 * BEAT_INTERVAL_S
"""The most by which one beat advances ledger time: while the leader was stopped or cut off, sessions may not
have been renewed."""
LEADER_TIMEOUT_S = 5.0
RETENTION_INTERVAL_S = 60.0
KEPT_LONGER_S = 60.0
"""What a key or a session has as its time is that of the last beat before its write, which may have taken
long: so they are kept for this much longer, and none is dropped within the retention."""
HELD_MAX = 90
"""Most records of PRECOMMIT with which a session is dropped; `finish` deletes them before."""
PURGED_TOGETHER = 60
"""Decisions that one transaction deletes, with their keys by time."""


class EtcdLeadership:
    """The part of one process in the election. ``clock`` is monotonic, in seconds. ``leads`` may change at
    any time."""

    def __init__(
        self, store: EtcdStore, sessions: Sessions, settings: LedgerSettings, clock: Callable[[], float]
    ) -> None:
        self.leads = False
        self.me = new_nonce()
        self._store = store
        self._sessions = sessions
        self._settings = settings
        self._locks = EtcdLocks(store, sessions, settings)
        self.summaries = Summaries(store, sessions)
        self._clock = clock
        self._seen: tuple[str, int] | None = None
        self._seen_at = 0.0
        self._moved_at = 0.0
        self._lead = Upkeep(
            "ledger upkeep", self._keep_up, BEAT_INTERVAL_S, undone="ledger time stands still"
        )
        self._cleaning = Upkeep(
            "ledger cleaning", self._clean, RETENTION_INTERVAL_S, undone="old records cannot be deleted now"
        )

    async def start(self) -> None:
        """Take the lead if it is free, then start the periodic work. Raises ``LedgerError``."""
        await self.look()
        self._lead.start("undoubt-ledger-upkeep")
        self._cleaning.start("undoubt-ledger-cleaning")

    async def stop(self) -> None:
        """Stop the periodic work."""
        await self._cleaning.stop()
        await self._lead.stop()

    async def close(self) -> None:
        """Stop, and resign, so that another process can lead immediately."""
        await self.stop()
        if self.leads:
            self.leads = False
            try:
                await self._set(lambda clock: clock if clock.leader != self.me else _led(clock, "", 0))
            except LedgerError as error:
                log.info("could not resign, so the next leader of the ledger has to wait: %s", error)

    async def look(self) -> None:
        """Take the lead if it is free, or if the beat has not changed for ``LEADER_TIMEOUT_S``."""
        clock = await self._read()
        now = self._clock()
        if (clock.leader, clock.beat) != self._seen:
            self._seen, self._seen_at = (clock.leader, clock.beat), now
        if clock.leader not in {"", self.me} and now - self._seen_at < LEADER_TIMEOUT_S:
            return
        seen = clock

        def taken(clock: LedgerClock) -> LedgerClock:
            return (
                _led(clock, self.me, 0) if (clock.leader, clock.beat) == (seen.leader, seen.beat) else clock
            )

        self.leads = (await self._set(taken)).leader == self.me
        self._moved_at = self._clock()

    async def beat(self) -> None:
        """Advance ledger time by the elapsed time."""
        now = self._clock()
        elapsed_s = min(now - self._moved_at, BEAT_S_MAX)
        self._moved_at = now
        await self.move(round(elapsed_s * 1000))

    async def move(self, elapsed_ms: int) -> None:
        # A repetition after a lost answer finds the beat of its own write.
        beat = (await self._read()).beat

        def moved(clock: LedgerClock) -> LedgerClock:
            mine = clock.leader == self.me and clock.beat == beat
            return _led(clock, self.me, elapsed_ms) if mine else clock

        self.leads = (await self._set(moved)).leader == self.me

    async def note_ends(self) -> None:
        """Store which sessions have ended, with the ledger time, and end their requests for locks."""
        records = await self._sessions.records()
        for info, record in records:
            if info.state is not SessionState.OPEN and record.closed_ms is None:
                await self._sessions.note_end(info.id, info.nonce)
        listed = await self._store.every(self._store.keys.all("lock-of"), keys_only=True)
        with_locks = {value_of(kv.key.removeprefix(self._store.keys.all("lock-of"))[:16]) for kv in listed}
        for session in with_locks - {info.id for info, _ in records if info.state is SessionState.OPEN}:
            await self._locks.end_locks_of(session)

    async def retire(self) -> list[int]:
        """Drop the sessions that are older than the retention, and delete the history of dropped sessions
        that is older than ``history_s``. Returns the numbers of the sessions that were dropped."""
        await self.note_ends()
        now_ms = (await self._read()).time_ms
        retained_ms = now_ms - round((self._settings.retention_s + KEPT_LONGER_S) * 1000)
        history_ms = now_ms - round((self._settings.history_s + KEPT_LONGER_S) * 1000)
        dropped = []
        for info, record in await self._sessions.records():
            old = record.closed_ms is not None and record.closed_ms <= retained_ms
            if old and await self._drop(info, record):
                dropped.append(info.id)
        await self._drop_keys(retained_ms)
        for kv in await self._store.every(self._store.keys.all("dropped")):
            record = decode(kv.value, SessionRecord)
            if record.closed_ms is not None and record.closed_ms <= history_ms:
                await self._purge(kv)
        return dropped

    async def _drop(self, info: SessionInfo, ended: SessionRecord) -> bool:
        """Drop a session, unless it is held: a transaction of it is unfinished, or precommitted and
        undecided, or has an open heuristic outcome. That is compared in the transaction that drops it; and
        that the session still is as it was when it was found old: if etcd was set back since, its end is a
        later one."""
        keys, store = self._store.keys, self._store
        key = keys.session(info.id, info.nonce)
        held = []
        for kv in await store.every(keys.all("precommit", info.id)):
            seq = value_of(kv.key[-16:])
            decision = keys.decision(TxId(info.id, decode(kv.value, PrecommitValue).nonce, seq))
            if (await store.read([decision]))[decision] is None:
                return False
            held.append(kv.key)
            if len(held) > HELD_MAX:
                return False
        unfinished, heuristics = keys.all("unfinished", info.id), keys.all("heuristic", info.id)
        if await store.count(unfinished) or await store.count(heuristics):
            return False
        snapshot = await store.read([key, *held])
        if snapshot.get(key, SessionRecord) != ended:
            return False
        gone = ("forgotten", "doomed", "lock-of", "precommit", "summary")
        answer = await store.client.transact(
            messages.EtcdTransaction(
                [*snapshot.unchanged([keys.era, key, *held]), *(map(_none, (unfinished, heuristics)))],
                [
                    messages.delete(key),
                    messages.put(keys.dropped(info.id, info.nonce), encode(ended)),
                    messages.delete(keys.floor(info.id)),
                    *(map(_all, (keys.all(kind, info.id) for kind in gone))),
                ],
            )
        )
        return answer.succeeded

    async def _drop_keys(self, retained_ms: int) -> None:
        """Delete the idempotency keys that were committed before ``retained_ms``."""
        keys, store = self._store.keys, self._store
        prefix = keys.all("key-age")
        for kv in await store.every(prefix, keys_only=True):
            kept, _, name = kv.key.removeprefix(prefix).partition(b"/")
            if value_of(kept) > retained_ms:
                break
            age, key = kv.key, keys.all("key") + name

            def dropped(
                snapshot: KeySnapshot, age: bytes = age, key: bytes = key, kept_ms: int = value_of(kept)
            ) -> tuple[Operations, None]:
                record = snapshot.get(key, KeyValueRecord)
                same = record is not None and record.kept_ms == kept_ms
                return [messages.delete(age), *((messages.delete(key),) if same else ())], None

            await store.change([key], dropped)

    async def _purge(self, dropped: messages.KeyValue) -> None:
        """Delete the decisions of a dropped session, some at a time, then its claims of idempotency keys, and
        then the session. Each deletion compares the session: in an etcd that was set back to the time before
        it was dropped, a late one deletes nothing."""
        keys, store = self._store.keys, self._store
        session = value_of(dropped.key.removeprefix(keys.all("dropped"))[:16])
        same = [*store.fence(), messages.unchanged(dropped.key, dropped.mod_revision)]
        prefix = keys.all("decision", session)
        while page := (await store.pages(prefix, limit=PURGED_TOGETHER))[0]:
            gone: list[messages.EtcdOperation] = []
            for kv in page:
                value = decode(kv.value, DecisionValue)
                txid = TxId(session, value.nonce, value_of(kv.key[-16:]))
                gone += [messages.delete(kv.key), messages.delete(keys.decided(value.decided_at, txid))]
            if not (await store.client.transact(messages.EtcdTransaction(same, gone))).succeeded:
                return
        await self._free_keys(session)
        rest = [_all(keys.all("key-of", session)), messages.delete(dropped.key)]
        await store.client.transact(messages.EtcdTransaction(same, rest))

    async def _free_keys(self, session: int) -> None:
        """Delete the claims of idempotency keys with which no transaction of a dropped session has
        committed."""
        keys, store = self._store.keys, self._store
        for kv in await store.every(keys.all("key-of", session)):
            key, seq = keys.key(kv.value.decode()), value_of(kv.key[-16:])

            def freed(snapshot: KeySnapshot, key: bytes = key, seq: int = seq) -> tuple[Operations, None]:
                record = snapshot.get(key, KeyValueRecord)
                if record is None or record.kept_ms is not None:
                    return [], None
                mine = (record.txid.session, record.txid.seq) == (session, seq)
                return [messages.delete(key)] if mine else [], None

            await store.change([key], freed)

    async def _read(self) -> LedgerClock:
        key = self._store.keys.clock
        snapshot = await self._store.read([key])
        self._store.clock_revision = snapshot.revision(key)
        return snapshot.get(key, LedgerClock) or LedgerClock()

    async def _set(self, change: Callable[[LedgerClock], LedgerClock]) -> LedgerClock:
        """Write the clock that ``change`` makes of the present one, unless it is the same; returns it."""
        key = self._store.keys.clock

        def changed(snapshot: KeySnapshot) -> tuple[Operations, LedgerClock]:
            present = snapshot.get(key, LedgerClock) or LedgerClock()
            clock = change(present)
            return [] if clock == present else [messages.put(key, encode(clock))], clock

        return await self._store.change([key], changed)

    async def _keep_up(self) -> None:
        try:
            if not self.leads:
                await self.look()
                return
            await self.beat()
        except LedgerError:
            self.leads = False
            raise

    async def _clean(self) -> None:
        """Beside the beats, which must not wait for it."""
        if self.leads:
            await self.retire()
            await self.summarize()

    async def summarize(self, *, most: int = DETAILS_MAX) -> int:
        """Delete the details of decisions, as :meth:`Summaries.summarize`, and before them those of dropped
        sessions, of which nothing has to be kept."""
        keys, store = self._store.keys, self._store
        for kv in await store.every(keys.all("dropped")):
            if await store.count(keys.all("decision")) <= most:
                break
            await self._purge(kv)
        return await self.summaries.summarize(self._settings.history_s, most=most)


def _none(prefix: bytes) -> messages.Compare:
    return messages.absent(prefix, above_all(prefix))


def _all(prefix: bytes) -> messages.EtcdOperation:
    return messages.delete(prefix, above_all(prefix))


def _led(clock: LedgerClock, leader: str, elapsed_ms: int) -> LedgerClock:
    return msgspec.structs.replace(
        clock, leader=leader, beat=clock.beat + 1, time_ms=clock.time_ms + max(elapsed_ms, 0)
    )
