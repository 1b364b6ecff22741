"""A ledger that tells what it answers: to the judge at once, to a history for later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tests.linearizability.history import History
from tests.linearizability.recorder import Recorder
from tests.simulation.judge import Judge
from undoubt.coordinator.ledger.contract import (
    UNFINISHED_MAX,
    BranchRecord,
    DecisionRecord,
    Heuristic,
    Ledger,
    RecordedDecision,
    Settlement,
    Verdict,
)
from undoubt.coordinator.node.ledger import NodeLedger
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Gid, Protocol, TxId


class RecordedLedger(Recorder):
    """Of one simulated process."""

    def __init__(self, ledger: Ledger, who: str, judge: Judge, history: History) -> None:
        super().__init__(ledger, who, history)
        self.judge = judge

    async def decide(
        self,
        txid: TxId,
        decision: Decision,
        branches: Sequence[BranchRecord],
        *,
        protocol: Protocol = Protocol.TWO_PHASE,
        cause: str = "",
    ) -> Decision:
        decided = await super().decide(txid, decision, branches, protocol=protocol, cause=cause)
        self.judge.decided(str(txid), str(decided))
        return decided

    async def commit_key(
        self, txid: TxId, key: str, proof: str, result: bytes, branches: Sequence[BranchRecord]
    ) -> Decision:
        of = {"session": txid.session, "seq": txid.seq, "asked": "commit", "protocol": "2"}
        with self.history.call(self.who, "decide", **of) as call:
            decided = await self.ledger.commit_key(txid, key, proof, result, branches)
            call.result = str(decided)
        self.judge.decided(str(txid), str(decided))
        return decided

    async def free_key(self, txid: TxId, key: str, proof: str) -> Decision:
        """ABORT is recorded only if the key was claimed: the answer stays open."""
        self.history.begin(
            self.who, "decide", session=txid.session, seq=txid.seq, asked="abort", protocol="2"
        )
        return await self.ledger.free_key(txid, key, proof)

    async def record_chosen(self, txid: TxId, chosen: Settlement) -> None:
        """What a leader does with a transaction that its acceptors have decided. The ledger keeps what it has
        recorded before, so the answer stays open."""
        of = {"session": txid.session, "seq": txid.seq, "asked": str(chosen.decision), "protocol": "p"}
        self.history.begin(self.who, "decide", **of)
        assert isinstance(self.ledger, NodeLedger)
        await self.ledger.record_chosen(txid, chosen)

    async def outcomes(self, gids: Iterable[Gid]) -> Mapping[Gid, Verdict]:
        verdicts = await super().outcomes(gids)
        for gid, verdict in verdicts.items():
            self.judge.verdict(str(gid), impostor=verdict is Verdict.IMPOSTOR)
            if verdict is Verdict.COMMITTED:
                self.judge.decided(str(gid.txid), "commit")
            elif verdict is Verdict.ABORTED:
                self.judge.presumed(str(gid.txid))
        return verdicts

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, RecordedDecision]:
        records = await super().records(txids)
        for txid, record in records.items():
            if record is not RecordedDecision.NOT_RECORDED:
                self.judge.decided(str(txid), str(record))
        return records

    async def unfinished(
        self, *, after: TxId | None = None, limit: int = UNFINISHED_MAX
    ) -> Sequence[DecisionRecord]:
        found = await self.ledger.unfinished(after=after, limit=limit)
        for record in found:
            self.judge.decided(str(record.txid), str(record.decision))
        return found

    async def record_heuristic(self, heuristic: Heuristic) -> None:
        await self.ledger.record_heuristic(heuristic)
        self.judge.heuristic(str(heuristic.gid.txid), str(heuristic.gid))
