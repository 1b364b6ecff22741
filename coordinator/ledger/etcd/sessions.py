"""Sessions: each has a lease of etcd, and a key that is attached to the lease and so ends with it.

A renewal renews the lease and then counts up in that key. A decision compares the count with the last one
that this process knows, so it fails in an etcd that was set back behind the last renewal. Renewals have a
client of their own: they wait behind no other request of their process.

The member that leads renews a lease without asking the others. One that was deposed and has not heard of it
renews nothing; so a renewal counts only if no other term has begun when its count is written: then the member
that renewed was the leader.

etcd ends a lease by a command of its own log, when the member that leads has measured the lease's time by its
monotonic clock; a new leader gives each lease its full time. Only the key says whether a session is open: the
lease may be revoked early, or be gone at a member that has not heard of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from undoubt.coordinator.errors import LedgerUnavailable, SessionLost
from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.contract import SessionInfo, SessionState
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.client import EtcdClient, EtcdRefused
from undoubt.coordinator.ledger.etcd.keyspace import (
    Era,
    LedgerClock,
    SessionRecord,
    decode,
    encode,
    number,
    value_of,
)
from undoubt.coordinator.ledger.etcd.recorded import keys_about, recorded
from undoubt.coordinator.ledger.etcd.store import KEYS_MAX, Compute, EtcdStore, KeySnapshot
from undoubt.participants.ids import TxId

SESSIONS_MAX = 1_000
"""Most sessions about which a process remembers what never changes."""
RENEWAL_ATTEMPTS = 3
"""How often one call renews a lease if etcd elects another leader meanwhile."""

Operations = Sequence[messages.EtcdOperation]

T = TypeVar("T")


class _SetBack(Exception):  # noqa: N818 - caught in this module
    """etcd lacks what it has acknowledged to this process about an open session."""


@dataclass(slots=True)
class KnownSession:
    """What this process knows of a session. ``renewals``: the highest count that etcd has acknowledged here;
    ``sent``: the highest that was sent. ``floor``: the highest that etcd has acknowledged here. ``decided``:
    the key of a decision that etcd has acknowledged here, and the revision at which it was written."""

    lease: int
    incarnation: int
    renewals: int = 0
    sent: int = 0
    floor: int = 1
    decided: tuple[TxId, int] | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A session in a snapshot. ``state`` is None if there is no such session. ``renewals`` is 0 without its
    key."""

    record: SessionRecord | None
    state: SessionState | None
    floor: int
    renewals: int

    def presumed(self, seq: int) -> bool:
        """Whether an undecided transaction of the session can no longer commit."""
        return self.state is not SessionState.OPEN or seq < self.floor


class Sessions:
    def __init__(self, store: EtcdStore, renewing: EtcdClient) -> None:
        """``renewing`` sends the renewals."""
        self._store = store
        self._renewing = renewing
        self._known: dict[tuple[int, str], KnownSession] = {}

    def keys_of(self, session: int, nonce: str) -> list[bytes]:
        """The keys that :meth:`standing` needs."""
        keys = self._store.keys
        return [keys.session(session, nonce), keys.lease(session, nonce), keys.floor(session)]

    def standing(self, snapshot: KeySnapshot, session: int, nonce: str) -> Standing:
        keys = self._store.keys
        record = snapshot.get(keys.session(session, nonce), SessionRecord)
        renewals = snapshot.number(keys.lease(session, nonce), 0)
        state = None if record is None else state_of(record, bool(renewals), self._store.era)
        return Standing(record, state, snapshot.number(keys.floor(session), 1), renewals)

    async def known(self, session: int, nonce: str) -> KnownSession | None:
        """What never changes about a session; None if there is no such session."""
        if (known := self._known.get((session, nonce))) is None:
            snapshot = await self._store.read(self.keys_of(session, nonce))
            standing = self.standing(snapshot, session, nonce)
            if standing.record is None:
                return None
            known = KnownSession(standing.record.lease, standing.record.incarnation, standing.renewals)
            known = self._remember(session, nonce, known)
        return known

    def _remember(self, session: int, nonce: str, known: KnownSession) -> KnownSession:
        while len(self._known) >= SESSIONS_MAX:
            del self._known[next(iter(self._known))]
        return self._known.setdefault((session, nonce), known)

    async def open(self, name: str, nonce: str, ttl_ms: int, agent: AgentBinding | None = None) -> int:
        """Open a session; returns its number. If it remains unknown whether it was opened, its lease is
        revoked: then it is not open, and a request that arrives late opens nothing."""
        keys, store = self._store.keys, self._store
        while True:
            lease = (await store.client.grant(max(math.ceil(ttl_ms / 1000), 1))).ID

            def opened(
                snapshot: KeySnapshot, lease: int = lease
            ) -> tuple[Operations, tuple[int, SessionRecord | None]]:
                if snapshot[keys.opened(nonce)] is not None:  # the answer was lost
                    return [], (snapshot.number(keys.opened(nonce), 0), None)
                session = snapshot.number(keys.next_session, 1)
                record = SessionRecord(name, ttl_ms, lease, store.era.incarnation, agent=agent)
                return [
                    messages.put(keys.next_session, number(session + 1)),
                    messages.put(keys.session(session, nonce), encode(record)),
                    messages.put(keys.lease(session, nonce), number(1), lease),
                    messages.put(keys.opened(nonce), number(session), lease),
                ], (session, record)

            try:
                session, record = await store.change([keys.next_session, keys.opened(nonce)], opened)
            except EtcdRefused as error:
                if error.no_lease:  # it has expired between the grant and the put
                    continue
                raise
            except LedgerUnavailable:
                await store.client.revoke_later(lease)
                raise
            if record is not None:
                self._remember(session, nonce, KnownSession(lease, record.incarnation, 1, 1))
            return session

    async def keep_alive(self, session: int, nonce: str, floor: int) -> None:
        """Renew the lease, count the renewal, and raise the floor. Raises ``SessionLost``,
        ``LedgerError``."""
        known = await self.known(session, nonce)
        if known is None or known.incarnation != self._store.era.incarnation:
            raise _lost(session)
        for _ in range(RENEWAL_ATTEMPTS):
            renewed = await self._renewing.renew(known.lease)
            header = await self._counted(session, nonce, known, floor)
            if renewed.TTL and renewed.header.raft_term == header.raft_term:
                return
        raise LedgerUnavailable(f"the lease of session {session} was not renewed; repeat the call")

    async def _counted(
        self, session: int, nonce: str, known: KnownSession, floor: int
    ) -> messages.AnswerHeader:
        """Count a renewal, and raise the floor."""
        store, keys = self._store, self._store.keys
        known.sent = max(known.sent, known.renewals) + 1
        count, key = known.sent, keys.lease(session, nonce)
        operations = [
            messages.nested(
                messages.EtcdTransaction(
                    [messages.below(key, number(count))], [messages.put(key, number(count), known.lease)]
                )
            )
        ]
        if floor > known.floor:
            operations += _raised(keys.floor(session), floor)
        asked = store.asked
        compare = [*store.fence(), messages.present(key)]
        try:
            answer = await self._renewing.transact(messages.EtcdTransaction(compare, operations))
        except EtcdRefused as error:
            if error.no_lease:
                raise _lost(session) from None
            raise
        if not store.note(answer.header, asked) or not answer.succeeded:
            snapshot = await store.read(self.keys_of(session, nonce))
            if self.standing(snapshot, session, nonce).state is not SessionState.OPEN:
                raise _lost(session)
            raise LedgerUnavailable(f"session {session} could not be renewed; repeat the call")
        known.renewals = max(known.renewals, count)
        known.floor = max(known.floor, floor)
        return answer.header

    async def close(self, session: int, nonce: str) -> None:
        store, keys = self._store, self._store.keys

        def closed(snapshot: KeySnapshot) -> tuple[Operations, SessionRecord | None]:
            standing = self.standing(snapshot, session, nonce)
            if standing.record is None or standing.state is not SessionState.OPEN:
                return [], standing.record
            record = standing.record
            return self._ended(snapshot, session, nonce, record, SessionState.CLOSED), record

        record = await store.change(self.keys_of(session, nonce), closed, looked=[keys.clock])
        if record is not None:
            await store.client.revoke_later(record.lease)

    async def note_end(self, session: int, nonce: str) -> None:
        """Store that a session has ended, with the ledger time, if its lease has ended."""
        keys = self._store.keys

        def noted(snapshot: KeySnapshot) -> tuple[Operations, None]:
            standing = self.standing(snapshot, session, nonce)
            if standing.record is None or standing.record.closed_ms is not None:
                return [], None
            if standing.state is None or standing.state is SessionState.OPEN:
                return [], None
            return self._ended(snapshot, session, nonce, standing.record, standing.state), None

        await self._store.change(self.keys_of(session, nonce), noted, looked=[keys.clock])

    def _ended(
        self, snapshot: KeySnapshot, session: int, nonce: str, record: SessionRecord, state: SessionState
    ) -> list[messages.EtcdOperation]:
        keys = self._store.keys
        clock = snapshot.get(keys.clock, LedgerClock) or LedgerClock()
        ended = msgspec.structs.replace(record, state=state, closed_ms=clock.time_ms)
        doomed = keys.all("doomed", session)
        return [
            messages.put(keys.session(session, nonce), encode(ended)),
            messages.delete(keys.lease(session, nonce)),
            messages.delete(doomed, doomed[:-1] + b"0"),
        ]

    async def change_in(
        self,
        txid: TxId,
        keys: Iterable[bytes],
        compute: Compute[T],
        *,
        looked: Iterable[bytes] = (),
    ) -> T:
        """As :meth:`EtcdStore.change`, about the session of ``txid``, whose keys are read and compared too.
        If etcd was set back behind what it has acknowledged here about that session, a new incarnation
        begins first."""
        store, session, nonce = self._store, txid.session, txid.nonce
        known = await self.known(session, nonce)
        # Of the time before the read: what is acknowledged meanwhile may be later than what is read.
        renewals, decided = (0, None) if known is None else (known.renewals, known.decided)
        asked = [*keys, *self.keys_of(session, nonce)]
        if decided is not None:
            asked += keys_about(store.keys, decided[0])

        def checked(snapshot: KeySnapshot) -> tuple[Operations, T]:
            standing = self.standing(snapshot, session, nonce)
            lost = standing.renewals < renewals
            if decided is not None and snapshot.revision(store.keys.decision(decided[0])) != decided[1]:
                found = recorded(store.keys, snapshot, decided[0])
                lost = lost or found is None or found.details is not None
                if known is not None and known.decided == decided:
                    known.decided = None  # its details were deleted
            if standing.state is SessionState.OPEN and lost:
                raise _SetBack
            return compute(snapshot)

        while True:
            before = store.asked
            try:
                return await store.change(asked, checked, looked=looked)
            except _SetBack:
                why = f"session {session} had been renewed, or had decided, since"
                await store.begin_incarnation(why, before, least=store.era.incarnation)

    async def infos(self) -> list[SessionInfo]:
        """All sessions that are kept."""
        return [info for info, _ in await self.records()]

    async def agents(self, sessions: Iterable[tuple[int, str]]) -> dict[tuple[int, str], AgentBinding]:
        """The agents to which ``sessions``, by number and nonce, are bound; one that is not is left out."""
        found: dict[tuple[int, str], AgentBinding] = {}
        asked = list(dict.fromkeys(sessions))
        for at in range(0, len(asked), KEYS_MAX):
            by_key = {self._store.keys.session(*each): each for each in asked[at : at + KEYS_MAX]}
            snapshot = await self._store.read(by_key)
            for key, each in by_key.items():
                record = snapshot.get(key, SessionRecord)
                if record is not None and record.agent is not None:
                    found[each] = record.agent
        return found

    async def records(self) -> list[tuple[SessionInfo, SessionRecord]]:
        """Sessions are read before leases: one that is opened meanwhile does not look expired, and one whose
        lease is missing has ended."""
        store, keys = self._store, self._store.keys
        await store.read([])
        found = await store.every(keys.all("session"))
        leases = {
            kv.key.removeprefix(keys.all("lease"))
            for kv in await store.every(keys.all("lease"), keys_only=True)
        }
        floors = {int(kv.key[-16:], 16): value_of(kv.value) for kv in await store.every(keys.all("floor"))}
        listed = []
        for kv in found:
            name = kv.key.removeprefix(keys.all("session"))
            session, nonce = int(name[:16], 16), name[17:].decode()
            record = decode(kv.value, SessionRecord)
            state = state_of(record, name in leases, store.era)
            info = SessionInfo(
                session, nonce, record.name, state, floors.get(session, 1), record.ttl_ms / 1000
            )
            listed.append((info, record))
        return listed


def state_of(record: SessionRecord, leased: bool, era: Era) -> SessionState:
    """The state of a session. ``leased``: its key is present. A session of an earlier incarnation whose end
    was not stored before is RESTORED, whether or not its lease has ended."""
    if record.state is not SessionState.OPEN:
        return record.state
    if record.incarnation < era.incarnation:
        return SessionState.RESTORED
    return SessionState.OPEN if leased else SessionState.EXPIRED


def transactions_of(txids: Iterable[TxId]) -> dict[tuple[int, str], list[TxId]]:
    """``txids`` by session."""
    found: dict[tuple[int, str], list[TxId]] = {}
    for txid in dict.fromkeys(txids):
        found.setdefault((txid.session, txid.nonce), []).append(txid)
    return found


def _raised(key: bytes, floor: int) -> list[messages.EtcdOperation]:
    """Raise a floor, which only rises: whether it is absent or lower."""
    value = messages.put(key, number(floor))
    return [
        messages.nested(
            messages.EtcdTransaction(
                [messages.absent(key)],
                [value],
                [messages.nested(messages.EtcdTransaction([messages.below(key, number(floor))], [value]))],
            )
        )
    ]


def _lost(session: int) -> SessionLost:
    return SessionLost(f"session {session} was closed or has expired")
