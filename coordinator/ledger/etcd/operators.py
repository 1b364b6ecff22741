"""Heuristic outcomes, and acts of operators."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from undoubt.coordinator.ledger.commands import (
    ForgetHeuristic,
    RecordAct,
    RecordHeuristic,
    check_given,
    check_limit,
)
from undoubt.coordinator.ledger.contract import ACTS_MAX, Act, Heuristic
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.keyspace import above_all, decode, encode
from undoubt.coordinator.ledger.etcd.sessions import Operations
from undoubt.coordinator.ledger.etcd.store import EtcdStore, KeySnapshot
from undoubt.participants.contract import Settled
from undoubt.participants.ids import Gid, new_nonce

DROPPED_TOGETHER = 100
"""Old acts that one transaction deletes."""


class Operators:
    """The part of :class:`~undoubt.coordinator.ledger.etcd.ledger.EtcdLedger` that is for operators."""

    _store: EtcdStore

    async def record_heuristic(self, heuristic: Heuristic) -> None:
        check_given(RecordHeuristic(heuristic))
        open_key, forgotten_key = self._heuristic_keys(heuristic.gid)
        session = self._store.keys.session(heuristic.gid.txid.session, heuristic.gid.txid.nonce)

        def recorded(snapshot: KeySnapshot) -> tuple[Operations, None]:
            forgotten = snapshot.get(forgotten_key, Heuristic)
            known = forgotten or snapshot.get(open_key, Heuristic)
            if known is None:
                return [messages.put(open_key, encode(heuristic))], None
            better = heuristic.kind is not Settled.HEURISTIC_HAZARD
            if known.kind is not Settled.HEURISTIC_HAZARD or not better:
                return [], None
            if forgotten is None:
                return [messages.put(open_key, encode(heuristic))], None
            kept = msgspec.structs.replace(heuristic, forgotten=True, forgotten_by=forgotten.forgotten_by)
            return [messages.put(forgotten_key, encode(kept))], None

        # With the session, so that it is not dropped at the same time.
        await self._store.change([open_key, forgotten_key, session], recorded)

    async def forget_heuristic(self, gid: Gid) -> bool:
        check_given(ForgetHeuristic(gid))
        open_key, forgotten_key = self._heuristic_keys(gid)
        request = new_nonce()

        def forgotten(snapshot: KeySnapshot) -> tuple[Operations, bool]:
            known = snapshot.get(open_key, Heuristic)
            if known is None:
                before = snapshot.get(forgotten_key, Heuristic)
                return [], before is not None and before.forgotten_by == request  # its answer was lost
            kept = msgspec.structs.replace(known, forgotten=True, forgotten_by=request)
            return [messages.delete(open_key), messages.put(forgotten_key, encode(kept))], True

        return await self._store.change([open_key, forgotten_key], forgotten)

    def _heuristic_keys(self, gid: Gid) -> tuple[bytes, bytes]:
        keys, session = self._store.keys, gid.txid.session
        return keys.heuristic(session, str(gid)), keys.forgotten(session, str(gid))

    async def heuristics(self, *, include_forgotten: bool = False) -> Sequence[Heuristic]:
        kinds = ("heuristic", "forgotten") if include_forgotten else ("heuristic",)
        found = []
        for kind in kinds:
            found += [
                decode(kv.value, Heuristic) for kv in await self._store.every(self._store.keys.all(kind))
            ]
        return sorted(found, key=lambda each: (each.found_at, str(each.gid)))

    async def record_act(self, act: Act) -> None:
        act = act.clipped()
        check_given(RecordAct(act, ACTS_MAX))
        # There is no certificate: etcd knows only a user.
        act = msgspec.structs.replace(act, certificate="")
        key = self._store.keys.act(act.id)

        def recorded(snapshot: KeySnapshot) -> tuple[Operations, None]:
            known = snapshot.get(key, Act)
            if known is None:
                return [messages.put(key, encode(act))], None
            if act.result in {"", known.result}:
                return [], None
            return [messages.put(key, encode(msgspec.structs.replace(known, result=act.result)))], None

        await self._store.change([key], recorded)
        await self._drop_old_acts()

    async def _drop_old_acts(self) -> None:
        prefix = self._store.keys.all("act")
        surplus = await self._store.count(prefix) - ACTS_MAX
        if surplus <= 0:
            return
        oldest = await self._in_order("ASCEND", surplus)
        for at in range(0, len(oldest), DROPPED_TOGETHER):
            gone = [messages.delete(kv.key) for kv in oldest[at : at + DROPPED_TOGETHER]]
            await self._store.client.transact(messages.EtcdTransaction(success=gone))

    async def acts(self, *, limit: int) -> Sequence[Act]:
        check_limit(limit)
        if not limit:
            return []
        newest = await self._in_order("DESCEND", min(limit, ACTS_MAX))
        return [decode(kv.value, Act) for kv in newest]

    async def _in_order(self, order: str, limit: int) -> Sequence[messages.KeyValue]:
        """Acts in the order in which they were begun."""
        prefix = self._store.keys.all("act")
        asked = messages.Range(prefix, above_all(prefix), limit, sort_order=order, sort_target="CREATE")
        return (await self._store.client.range(asked)).kvs
