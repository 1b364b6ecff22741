"""The contract over the keys of an etcd."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from undoubt.coordinator.errors import SessionLost
from undoubt.coordinator.ledger.agents import AgentBinding, AgentKey
from undoubt.coordinator.ledger.commands import (
    Decide,
    Doom,
    Finish,
    KeepAlive,
    OpenSession,
    Precommit,
    check_given,
    check_page,
)
from undoubt.coordinator.ledger.contract import (
    CAUSE_CHARACTERS_MAX,
    UNFINISHED_MAX,
    Acceptors,
    BranchRecord,
    DecisionRecord,
    LedgerInfo,
    RecordedDecision,
    Session,
    SessionInfo,
    SessionState,
    Verdict,
)
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.client import EtcdClient
from undoubt.coordinator.ledger.etcd.decisions import EtcdDecisions
from undoubt.coordinator.ledger.etcd.keys import EtcdKeys
from undoubt.coordinator.ledger.etcd.keyspace import FORMAT, LedgerClock, PrecommitValue, encode
from undoubt.coordinator.ledger.etcd.locks import EtcdLocks
from undoubt.coordinator.ledger.etcd.maintenance import EtcdLeadership
from undoubt.coordinator.ledger.etcd.operators import Operators
from undoubt.coordinator.ledger.etcd.sessions import Operations, Sessions
from undoubt.coordinator.ledger.etcd.store import EtcdStore, KeySnapshot
from undoubt.coordinator.ledger.etcd.transactions import Looked, Transactions
from undoubt.coordinator.ledger.rules import Names, sorted_branches, verdict_of
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.bounds import seconds
from undoubt.participants.contract import Claim, Decision
from undoubt.participants.ids import Gid, Protocol, TxId, new_nonce

FINISHED_TOGETHER = 60
"""Transactions that are finished by one transaction of etcd: each is a nested one of three operations."""


class EtcdLedger(EtcdKeys, EtcdLocks, Operators, Transactions):
    """A ledger in an etcd. Made by :meth:`open`. May be used only in the event loop and the process in which
    it was opened."""

    backend = "etcd"
    acceptors: Acceptors | None = None

    def __init__(self, settings: LedgerSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.client = EtcdClient(settings)
        self.renewing = EtcdClient(settings)
        """For the renewal of sessions alone: it waits behind no other request of this process."""
        store = EtcdStore(self.client)
        sessions = Sessions(store, self.renewing)
        EtcdLocks.__init__(self, store, sessions, settings)
        self.store = self._store = store
        self._sessions = sessions
        self._decisions = EtcdDecisions(store, sessions)
        self.upkeep = EtcdLeadership(store, sessions, settings, clock)
        """The periodic work of the process that leads: ledger time, and deleting old keys."""
        self._names = Names("", b"")

    @classmethod
    async def open(
        cls, settings: LedgerSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> EtcdLedger:
        """Open the ledger. ``clock`` is monotonic, in seconds, and used while this process leads. Raises
        ``LedgerMissing``, ``LedgerUnusable`` or ``LedgerUnavailable``."""
        ledger = cls(settings, clock)
        try:
            await ledger._find()
            await ledger.upkeep.start()
        except BaseException:
            await ledger.renewing.close()
            await ledger.client.close()
            raise
        return ledger

    async def _find(self) -> None:
        store = self._store
        await store.find()
        secret = (await store.read([store.keys.secret]))[store.keys.secret]
        self._names = Names(store.era.ledger_id, secret or b"")

    @property
    def ledger_id(self) -> str:
        return self._store.era.ledger_id

    @property
    def leads(self) -> bool:
        return self.upkeep.leads

    @property
    def secret(self) -> bytes:
        """What proves the ledger's names: for whoever takes over its branches if the ledger is lost."""
        return self._names.secret

    async def close(self) -> None:
        """Release the ledger; another process may lead from now on."""
        if self.client.foreign:
            return
        await self.upkeep.close()
        await self._decisions.close()
        await self.renewing.close()
        await self.client.close()

    async def begin_incarnation(self, why: str) -> None:
        """Begin a new incarnation, because etcd was set back. ``why`` is logged."""
        await self._store.begin_incarnation(why, self._store.asked)
        await self._store.read([])

    # Sessions.

    async def open_session(self, name: str, ttl_s: float, *, agent: AgentBinding | None = None) -> Session:
        nonce, ttl_ms = new_nonce(), round(seconds("ttl_s", ttl_s, least=0.001) * 1000)
        check_given(OpenSession(nonce, name, ttl_ms, agent=agent))
        number = await self._sessions.open(name, nonce, ttl_ms, agent)
        return Session(number, nonce, name, ttl_ms / 1000, key=self._names.key_bytes(number, nonce))

    async def keep_alive(self, session: Session, floor: int) -> None:
        check_given(KeepAlive(session.id, session.nonce, floor))
        await self._sessions.keep_alive(session.id, session.nonce, floor)

    async def close_session(self, session: Session) -> None:
        check_given(KeepAlive(session.id, session.nonce, 1))
        await self._sessions.close(session.id, session.nonce)

    async def sessions(self) -> Sequence[SessionInfo]:
        return await self._sessions.infos()

    async def agent_keys(self, txids: Iterable[TxId]) -> Sequence[AgentKey | None]:
        asked = list(txids)
        check_given(Finish(tuple(asked)))
        bound = await self._sessions.agents((txid.session, txid.nonce) for txid in asked)
        return [self._names.agent_key(txid, bound.get((txid.session, txid.nonce))) for txid in asked]

    # EtcdDecisions.

    async def decide(
        self,
        txid: TxId,
        decision: Decision,
        branches: Sequence[BranchRecord],
        *,
        protocol: Protocol = Protocol.TWO_PHASE,
        cause: str = "",
    ) -> Decision:
        command = Decide(txid, protocol, decision, tuple(branches), time.time(), cause[:CAUSE_CHARACTERS_MAX])
        # Checked here, since a transaction of etcd contains the decisions of many callers: only this caller
        # gets the error.
        check_given(command)
        await self._check(txid, protocol, decision, branches)
        return await self._decisions.decide(command)

    async def _check(
        self, txid: TxId, protocol: Protocol, decision: Decision, branches: Sequence[BranchRecord]
    ) -> None:
        known = await self._sessions.known(txid.session, txid.nonce)
        # Without a session nothing can be recorded.
        self._names.check(txid, protocol, decision, branches, tagged=known is not None)

    async def precommit(
        self, txid: TxId, branches: Sequence[BranchRecord], *, protocol: Protocol = Protocol.THREE_PHASE
    ) -> None:
        check_given(Precommit(txid, protocol, tuple(branches), time.time()))
        await self._check(txid, protocol, Decision.COMMIT, branches)
        keys = self._store.keys
        value = encode(PrecommitValue(txid.nonce, protocol, tuple(sorted_branches(branches))))

        def noted(snapshot: KeySnapshot) -> tuple[Operations, None]:
            standing = self._sessions.standing(snapshot, txid.session, txid.nonce)
            if standing.presumed(txid.seq):
                raise SessionLost(f"session {txid.session} was closed or has expired")
            if snapshot[keys.decision(txid)] is not None:
                return [], None
            return [messages.put(keys.precommit(txid), value)], None

        await self._sessions.change_in(txid, [keys.decision(txid)], noted)

    async def outcomes(self, gids: Iterable[Gid]) -> Mapping[Gid, Verdict]:
        asked = list(gids)
        check_given(Finish(tuple(gid.txid for gid in asked)))
        known = await self._looked_up(gid.txid for gid in asked)
        issued = max((gid.txid.session for gid in asked if self._never_issued(gid, known)), default=0)
        if issued:
            await self._store.begin_incarnation(
                f"it has given names in session {issued}, which it does not contain",
                self.store.asked,
                issued=issued,
            )
            known = await self._looked_up(gid.txid for gid in asked)
        return {gid: self._verdict(gid, known[gid.txid]) for gid in asked}

    def _never_issued(self, gid: Gid, known: Mapping[TxId, Looked]) -> bool:
        """Whether the ledger gave the name ``gid`` in a session that its records do not contain yet: it was
        set back."""
        return gid.txid.session >= known[gid.txid].next_session and self._names.gave(gid)

    def _verdict(self, gid: Gid, known: Looked) -> Verdict:
        if not self._names.gave(gid):
            return Verdict.IMPOSTOR
        standing, found = known.standing, known.recorded
        return verdict_of(
            None if found is None or standing.state is None else found.decision,
            standing.state,
            standing.floor,
            gid.txid.seq,
            gid.protocol,
        )

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, RecordedDecision]:
        asked = list(txids)
        check_given(Finish(tuple(asked)))
        return {
            txid: RecordedDecision.NOT_RECORDED
            if known.recorded is None or known.standing.state is None
            else RecordedDecision(str(known.recorded.decision))
            for txid, known in (await self._looked_up(asked)).items()
        }

    async def backends(self, claims: Iterable[Claim]) -> Sequence[TxId | None]:
        asked = list(claims)
        nonces = {info.id: info.nonce for info in await self._sessions.infos()} if asked else {}
        return [
            self._names.proved(claim, nonces[claim.session]) if claim.session in nonces else None
            for claim in asked
        ]

    async def doom(self, txid: TxId, cause: str) -> None:
        cause = cause[:CAUSE_CHARACTERS_MAX]
        check_given(Doom(txid, cause))
        keys = self._store.keys

        def doomed(snapshot: KeySnapshot) -> tuple[Operations, None]:
            standing = self._sessions.standing(snapshot, txid.session, txid.nonce)
            over = standing.presumed(txid.seq) or snapshot[keys.decision(txid)] is not None
            if over or snapshot[keys.doomed(txid)] is not None:
                return [], None
            return [messages.put(keys.doomed(txid), cause.encode())], None

        asked = [keys.decision(txid), keys.doomed(txid), *self._sessions.keys_of(txid.session, txid.nonce)]
        await self._store.change(asked, doomed)

    async def doomed(self, txid: TxId) -> str | None:
        check_given(Finish((txid,)))
        keys = self._store.keys
        asked = [keys.decision(txid), keys.doomed(txid), *self._sessions.keys_of(txid.session, txid.nonce)]
        snapshot = await self._store.read(asked)
        standing = self._sessions.standing(snapshot, txid.session, txid.nonce)
        cause = snapshot[keys.doomed(txid)]
        if cause is None or standing.presumed(txid.seq) or snapshot[keys.decision(txid)] is not None:
            return None
        return cause.decode()

    async def unfinished(
        self, *, after: TxId | None = None, limit: int = UNFINISHED_MAX
    ) -> Sequence[DecisionRecord]:
        check_page(limit, after)
        return await self._unfinished(after, limit)

    async def finish(self, txids: Iterable[TxId]) -> None:
        asked = list(txids)
        check_given(Finish(tuple(asked)))
        for at in range(0, len(asked), FINISHED_TOGETHER):
            finished = list(map(self._finished, dict.fromkeys(asked[at : at + FINISHED_TOGETHER])))
            await self._store.client.transact(messages.EtcdTransaction(success=finished))

    def _finished(self, txid: TxId) -> messages.EtcdOperation:
        """Only in the session with that nonce. A deletion that is carried out late deletes nothing else: no
        transaction becomes unfinished again."""
        keys = self._store.keys
        session = keys.session(txid.session, txid.nonce)
        gone = [
            messages.delete(keys.unfinished(txid)),
            messages.delete(keys.precommit(txid)),
            messages.delete(keys.doomed(txid)),
        ]
        decided = [messages.present(session), messages.present(keys.decision(txid))]
        return messages.nested(messages.EtcdTransaction(decided, gone))

    async def info(self) -> LedgerInfo:
        store, keys = self._store, self._store.keys
        records = await self._sessions.records()
        clock = (await store.read([keys.clock])).get(keys.clock, LedgerClock) or LedgerClock()
        return LedgerInfo(
            self.ledger_id,
            store.era.incarnation,
            self.client.url,
            self.backend,
            str(FORMAT),
            clock.time_ms / 1000,
            sum(info.state is SessionState.OPEN for info, _ in records),
            len(records),
            await store.count(keys.all("unfinished")),
            await store.count(keys.all("decision")),
            await store.count(keys.all("heuristic")),
        )
