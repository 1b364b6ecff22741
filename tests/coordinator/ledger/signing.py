"""Ledgers whose callers may leave the tags out: what most tests of a ledger are not about.

A coordinator has the key of its session and tags every name itself. Here whoever opened a session has its
names tagged on their way, and may ask by transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec

from undoubt.coordinator.ledger.commands import Decide
from undoubt.coordinator.ledger.contract import Acceptors, BranchRecord, Ledger, Session, Verdict
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.participants.contract import Decision
from undoubt.participants.ids import NO_KEY, Gid, Protocol, SessionKey, TxId

PARTICIPANT = "orders"

Named = TypeVar("Named", TxId, Gid)


class Signing:
    """Everything else is the ledger's own."""

    _keys: ClassVar[dict[tuple[int, str], SessionKey]] = {}
    """Of all sessions that were opened through any of them: nonces are random."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)

    @property
    def acceptors(self) -> Any:
        acceptors = self.ledger.acceptors
        return None if acceptors is None else _SigningAcceptors(acceptors, self)

    async def open_session(self, name: str, ttl_s: float, **more: Any) -> Session:
        session = await self.ledger.open_session(name, ttl_s, **more)
        self.remember(session)
        return session

    def remember(self, session: Session) -> Signing:
        self._keys[session.id, session.nonce] = SessionKey(session.key)
        return self

    async def decide(
        self,
        txid: TxId,
        decision: Decision,
        branches: Sequence[BranchRecord],
        *,
        protocol: Protocol = Protocol.TWO_PHASE,
        cause: str = "",
    ) -> Decision:
        tagged = self.tagged(txid, branches, protocol)
        return await self.ledger.decide(txid, decision, tagged, protocol=protocol, cause=cause)

    async def precommit(
        self, txid: TxId, branches: Sequence[BranchRecord], *, protocol: Protocol = Protocol.THREE_PHASE
    ) -> None:
        await self.ledger.precommit(txid, self.tagged(txid, branches, protocol), protocol=protocol)

    async def outcomes(
        self, asked: Iterable[Named], *, protocol: Protocol = Protocol.TWO_PHASE
    ) -> dict[Named, Verdict]:
        """By transaction, or by gid as the ledger's own."""
        gids = {one: self._named(one, protocol) for one in asked}
        verdicts = await self.ledger.outcomes(gids.values())
        return {one: verdicts[gid] for one, gid in gids.items()}

    def _named(self, one: TxId | Gid, protocol: Protocol) -> Gid:
        return one if isinstance(one, Gid) else self.gid(one, protocol)

    def gid(
        self,
        txid: TxId,
        protocol: Protocol = Protocol.TWO_PHASE,
        number: int = 1,
        participant: str = PARTICIPANT,
    ) -> Gid:
        """The name of a branch, with the tag that its coordinator would give it."""
        named = Gid(self.ledger.ledger_id, Protocol(protocol), txid, number, participant)
        return named.tagged(self._keys.get((txid.session, txid.nonce), NO_KEY))

    def key_proof(self, txid: TxId, key: str) -> str:
        """The proof that the coordinator of ``txid`` wants the idempotency key ``key``."""
        return self._keys.get((txid.session, txid.nonce), NO_KEY).key_proof(txid, key)

    def tagged(
        self, txid: object, branches: Sequence[BranchRecord], protocol: Protocol
    ) -> list[BranchRecord]:
        """``branches`` with tags; as they are if ``txid`` is no id: tests give what callers get wrong."""
        if not isinstance(txid, TxId):
            return list(branches)
        return [
            branch
            if branch.tag
            else msgspec.structs.replace(
                branch, tag=self.gid(txid, protocol, branch.number, branch.participant).tag
            )
            for branch in branches
        ]


class _SigningAcceptors:
    def __init__(self, acceptors: Acceptors, signing: Signing) -> None:
        self._acceptors = acceptors
        self._signing = signing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._acceptors, name)

    async def open_session(self, name: str, ttl_s: float) -> Session:
        session = await self._acceptors.open_session(name, ttl_s)
        self._signing.remember(session)
        return session

    async def vote(self, txid: TxId, branches: Sequence[BranchRecord]) -> Decision:
        return await self._acceptors.vote(txid, self._signing.tagged(txid, branches, Protocol.PAXOS))


class TaggingLedger(MemoryLedger):
    """Knows its own secret, and so the tags that its callers leave out."""

    def decide_command(
        self, txid: TxId, decision: Decision, branches: Sequence[BranchRecord], protocol: Protocol, cause: str
    ) -> Decide:
        return super().decide_command(txid, decision, self.tagged(txid, branches, protocol), protocol, cause)

    async def precommit(
        self, txid: TxId, branches: Sequence[BranchRecord], *, protocol: Protocol = Protocol.THREE_PHASE
    ) -> None:
        await super().precommit(txid, self.tagged(txid, branches, protocol), protocol=protocol)

    def tagged(self, txid: TxId, branches: Sequence[BranchRecord], protocol: Protocol) -> list[BranchRecord]:
        key = self.names.key(txid.session, txid.nonce)
        return [
            msgspec.structs.replace(
                branch, tag=branch.tag or branch.gid(self.ledger_id, protocol, txid).tagged(key).tag
            )
            for branch in branches
        ]
