"""Creates, checks and exports a ledger in etcd, by commands of an operator."""

from __future__ import annotations

import msgspec

from undoubt.coordinator.errors import LedgerError, LedgerMissing, LedgerUnusable
from undoubt.coordinator.ledger.contract import Act, Ledger
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.client import EtcdClient
from undoubt.coordinator.ledger.etcd.keyspace import (
    FORMAT,
    DecisionValue,
    Era,
    LedgerClock,
    SessionRecord,
    decode,
    encode,
    number,
)
from undoubt.coordinator.ledger.etcd.ledger import EtcdLedger
from undoubt.coordinator.ledger.etcd.store import EtcdStore
from undoubt.coordinator.ledger.rules import new_secret
from undoubt.coordinator.ledger.sqlite.restoring import RestoredLedger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.ids import new_ledger_id

QUOTA_SHARE = 0.8
"""A database above this part of etcd's default quota is a problem."""
QUOTA_BYTES = 2 * 1024**3
"""etcd's default ``--quota-backend-bytes``."""


async def create(settings: LedgerSettings) -> bool:
    """Make the ledger if there is none; returns whether it was made. Raises ``LedgerUnusable`` or
    ``LedgerUnavailable``."""
    client = EtcdClient(settings)
    try:
        return await _create(client)
    finally:
        await client.close()


async def _create(client: EtcdClient) -> bool:
    keys = EtcdStore(client).keys
    looked = await client.range(messages.Range(keys.era))
    if looked.kvs:
        return False
    kept = await client.range(messages.Range(keys.root, keys.root[:-1] + b"0", limit=1, keys_only=True))
    if kept.kvs:
        raise LedgerMissing(
            f"there is no ledger at {client.url}, and yet there are keys of one"
            f" ({kept.kvs[0].key.decode(errors='replace')}): restore etcd from a snapshot, or choose another"
            " prefix"
        )
    era = encode(Era(FORMAT, new_ledger_id(), 1, looked.header.cluster_id))
    answer = await client.transact(
        messages.EtcdTransaction(
            [messages.absent(keys.era)],
            [
                messages.put(keys.era, era),
                messages.put(keys.secret, new_secret()),
                messages.put(keys.next_session, number(1)),
                messages.put(keys.clock, encode(LedgerClock())),
            ],
            [messages.get(keys.era)],
        )
    )
    if answer.succeeded:
        return True
    found = answer.responses[0].response_range
    return found is not None and bool(found.kvs) and found.kvs[0].value == era  # of a lost answer


async def accept(settings: LedgerSettings, act: Act) -> RestoredLedger:
    """Begin a new incarnation, because etcd was restored from a snapshot; ``act`` is recorded. Raises
    ``LedgerError``."""
    ledger = await EtcdLedger.open(settings)
    try:
        before = await ledger.info()
        await ledger.begin_incarnation("an operator has accepted it as it is")
        await ledger.record_act(act)
        info = await ledger.info()
    finally:
        await ledger.close()
    return RestoredLedger(info.ledger_id, info.incarnation, before.sessions_open, None, None, 0)


def secret_of(ledger: Ledger) -> bytes:
    """The secret of a ledger in etcd."""
    if not isinstance(ledger, EtcdLedger):
        raise TypeError(f"not a ledger in etcd: {type(ledger).__name__}")
    return ledger.secret


async def problems(settings: LedgerSettings) -> list[str]:
    """The problems of the ledger and of its etcd; empty if there are none. Raises ``LedgerMissing``,
    ``LedgerMisconfigured`` or ``LedgerUnavailable``."""
    client = EtcdClient(settings)
    try:
        store = EtcdStore(client)
        await store.find()
        return [*await _of_members(client), *await _of_keys(store)]
    except LedgerMissing:
        raise
    except LedgerUnusable as error:
        return [str(error)]
    finally:
        await client.close()


async def member_problems(settings: LedgerSettings) -> list[str]:
    """The problems of the members of the ledger's etcd; empty if there are none. Raises
    ``LedgerMisconfigured``."""
    client = EtcdClient(settings)
    try:
        return await _of_members(client)
    finally:
        await client.close()


async def _of_members(client: EtcdClient) -> list[str]:
    found = []
    clusters: dict[int, str] = {}
    for base in client.bases:
        try:
            status = await client.status(base)
        except LedgerError as error:
            found.append(str(error))
            continue
        clusters.setdefault(status.header.cluster_id, base)
        found += [f"member {base} reports: {words}" for words in status.errors]
        if not status.leader:
            found.append(f"member {base} knows no leader")
        if status.dbSize > QUOTA_SHARE * QUOTA_BYTES:
            found.append(
                f"the database of member {base} has {status.dbSize} bytes, and etcd's default quota is"
                f" {QUOTA_BYTES}: compact and defragment it, lower ledger.history_s, or raise the quota"
            )
    if len(clusters) > 1:
        found.append(f"members of different clusters are named: {', '.join(sorted(clusters.values()))}")
    return found


async def _of_keys(store: EtcdStore) -> list[str]:
    keys = store.keys
    found = []
    sessions = set()
    snapshot = await store.read([keys.next_session])
    following = snapshot.number(keys.next_session, 1)
    for kv in await store.every(keys.all("session")):
        session = int(kv.key.split(b"/")[-2], 16)
        sessions.add(session)
        if not _readable(kv.value, SessionRecord):
            found.append(f"session {session} cannot be read")
        if session >= following:
            found.append(f"session {session} is not below the next number, {following}")
    for kv in await store.every(keys.all("unfinished"), keys_only=True):
        session, seq = (int(part, 16) for part in kv.key.split(b"/")[-2:])
        decision = keys.all("decision", session) + number(seq)
        value = (await store.read([decision]))[decision]
        if value is None:
            found.append(f"transaction {session}.{seq} is unfinished, and its decision is missing")
        elif not _readable(value, DecisionValue):
            found.append(f"the decision of unfinished transaction {session}.{seq} cannot be read")
        if session not in sessions:
            found.append(f"transaction {session}.{seq} is unfinished, and its session is missing")
    return found


def _readable(value: bytes, kind: type[object]) -> bool:
    try:
        decode(value, kind)
    except msgspec.MsgspecError:
        return False
    return True
