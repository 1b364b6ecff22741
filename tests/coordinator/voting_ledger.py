"""A ledger in memory with acceptors in memory: Paxos Commit without a network."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from undoubt.coordinator.ledger.cluster.acceptors import ClusterAcceptors, among
from undoubt.coordinator.ledger.contract import RecordedDecision, Session, SessionInfo
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.paxos import Acceptor, AcceptorReply, AcceptorRequest, RestoredAcceptor
from undoubt.participants.ids import TxId


class VotingLedger(MemoryLedger):
    """``messages`` and ``writes`` count what the acceptors are asked and answer, and what each had to store
    before it did."""

    def __init__(self, acceptors: int = 3) -> None:
        super().__init__()
        self.nodes = {number: Acceptor(number, RestoredAcceptor()) for number in range(1, acceptors + 1)}
        self.messages = self.writes = 0
        self.acceptors = ClusterAcceptors(
            self.ask,
            self._open_bound,
            self._session_of,
            self._recorded,
            Random(1),
            voters=self.voters,
            timeout_s=5.0,
        )

    def ask(
        self, node: int, request: AcceptorRequest, answer: Callable[[AcceptorReply | Exception], None]
    ) -> None:
        acceptor = self.nodes[node]
        acceptor.step(0, request)
        ready = acceptor.ready()
        self.writes += ready.writes
        for each in (*ready.replies_now, *acceptor.on_persisted(ready.token)):
            self.messages += 2
            answer(each.message)

    def _voters(self) -> tuple[int, ...]:
        return tuple(self.nodes)

    async def _open_bound(self, name: str, ttl_s: float) -> Session:
        return await self.open_session(name, ttl_s, bind=True)

    async def _session_of(self, txid: TxId) -> SessionInfo | None:
        return among(self.machine.session_infos(), txid)

    async def _recorded(self, txid: TxId) -> RecordedDecision:
        return self.machine.record(txid)
