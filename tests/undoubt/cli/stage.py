"""A ledger and two participants in memory, in a known state, and the command line run against them.

The participants are the product's scripted ones. The ledger here keeps only what these commands ask of one;
the rules themselves are proved by the ledger's own conformance suite.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest

from tests.undoubt.cli.harness import Ran
from undoubt import wiring
from undoubt.cli import main
from undoubt.coordinator.ledger.contract import (
    Act,
    BranchRecord,
    DecisionRecord,
    Heuristic,
    RecordedDecision,
    SessionInfo,
    SessionState,
    TransactionInfo,
    Verdict,
)
from undoubt.coordinator.ledger.pages import behind
from undoubt.participants.contract import Decision, Evidence, PreparedBranch
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Foreign, Gid, Protocol, TxId
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import ScriptedParticipant

LEDGER_ID = "abcdefghij"
NONCE = "00112233445566ff"
WRONG_TAG = "00000000000000000bad"


@dataclass
class StageLedger:
    """Verdicts as the test sets them; the first decision stays; heuristics are remembered."""

    ledger_id: str = LEDGER_ID
    leads: bool = True
    verdicts: dict[TxId, Verdict] = field(default_factory=dict)
    decisions: dict[TxId, TransactionInfo] = field(default_factory=dict)
    known: dict[Gid, Heuristic] = field(default_factory=dict)
    recorded: dict[str, Act] = field(default_factory=dict)
    session_list: list[SessionInfo] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    async def outcomes(self, gids: Iterable[Gid]) -> Mapping[Gid, Verdict]:
        self.trace.append("outcomes")
        return {
            gid: Verdict.IMPOSTOR if gid.tag == WRONG_TAG else self.verdicts.get(gid.txid, Verdict.FORGOTTEN)
            for gid in gids
        }

    async def decide(
        self,
        txid: TxId,
        decision: Decision,
        branches: Sequence[BranchRecord],
        *,
        protocol: Protocol = Protocol.TWO_PHASE,
        cause: str = "",
    ) -> Decision:
        if txid not in self.decisions:
            self.record(txid, decision, tuple(branches))
        self.trace.append(f"decide {decision}")
        return Decision(str(self.decisions[txid].record))

    def record(self, txid: TxId, decision: Decision, branches: tuple[BranchRecord, ...]) -> None:
        self.verdicts[txid] = Verdict.COMMITTED if decision is Decision.COMMIT else Verdict.ABORTED
        self.decisions[txid] = TransactionInfo(
            txid,
            RecordedDecision(str(decision)),
            self.verdicts[txid],
            "2",
            branches,
            time.time() - 60,
            "host:1",
            False,
            (),
        )

    async def transaction(self, txid: TxId) -> TransactionInfo | None:
        found = self.decisions.get(txid)
        mine = tuple(one for gid, one in self.known.items() if gid.txid == txid)
        return None if found is None else msgspec.structs.replace(found, heuristics=mine)

    async def transactions(self, *, limit: int, before: TxId | None = None) -> Sequence[TransactionInfo]:
        newest = sorted(self.decisions, reverse=True)
        if before is not None:
            newest = [txid for txid in newest if txid < before]
        return [found for txid in newest[:limit] if (found := await self.transaction(txid))]

    async def unfinished(self, *, after: TxId | None = None, limit: int = 1) -> Sequence[DecisionRecord]:
        kept = [
            DecisionRecord(
                info.txid, info.protocol, Decision(str(info.record)), info.branches, 0.0, info.coordinator
            )
            for info in self.decisions.values()
            if not info.finished and info.protocol is not None
        ]
        return behind(kept, after)

    async def finish(self, txids: Iterable[TxId]) -> None:
        for txid in txids:
            self.decisions[txid] = msgspec.structs.replace(self.decisions[txid], finished=True)

    async def record_act(self, act: Act) -> None:
        known = self.recorded.get(act.id)
        self.recorded[act.id] = act if known is None else msgspec.structs.replace(known, result=act.result)

    async def acts(self, *, limit: int) -> Sequence[Act]:
        return list(reversed(self.recorded.values()))[:limit]

    async def sessions(self) -> Sequence[SessionInfo]:
        return self.session_list

    async def heuristics(self, *, include_forgotten: bool = False) -> Sequence[Heuristic]:
        return [one for one in self.known.values() if include_forgotten or not one.forgotten]

    async def record_heuristic(self, heuristic: Heuristic) -> None:
        self.trace.append(str(heuristic.kind))
        self.known[heuristic.gid] = heuristic

    async def forget_heuristic(self, gid: Gid) -> bool:
        found = self.known.get(gid)
        if found is None or found.forgotten:
            return False
        self.known[gid] = msgspec.structs.replace(found, forgotten=True)
        return True


class Stage:
    """See the module. ``run`` is one command; the state stays between two."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.ledger = StageLedger()
        self.orders = ScriptedParticipant("orders")
        self.payments = ScriptedParticipant("payments")
        self.ledger.session_list.append(SessionInfo(1, NONCE, "shop", SessionState.CLOSED, 1, 10.0))
        monkeypatch.setattr(wiring, "opened", self._opened)
        monkeypatch.setattr("undoubt.cli.context.must_exist", lambda _settings: None)
        monkeypatch.delenv("UNDOUBT_CONFIG", raising=False)

    @contextlib.asynccontextmanager
    async def _opened(self, _settings: object, **_also: bool) -> AsyncIterator[tuple[StageLedger, Registry]]:
        registry = Registry()
        registry.add(self.orders)
        registry.add(self.payments)
        yield self.ledger, registry

    def silence_payments(self) -> None:
        """From now on participant payments does not answer."""
        self.payments.down = ParticipantUnavailable("payments", "connection refused")

    def gid(self, seq: int, number: int = 1, participant: str = "orders", ledger: str = LEDGER_ID) -> Gid:
        return Gid(ledger, Protocol.TWO_PHASE, TxId(1, NONCE, seq), number, participant)

    def prepare(self, seq: int, verdict: Verdict | Decision) -> tuple[Gid, Gid]:
        """A transaction prepared in both, with that standing. ``Decision``: it is recorded."""
        gids = self.gid(seq, 1, "orders"), self.gid(seq, 2, "payments")
        records = []
        for gid, participant in zip(gids, (self.orders, self.payments), strict=True):
            branch = asyncio.run(self._prepare(participant, gid))
            records.append(
                BranchRecord(gid.branch, gid.participant, branch.xid, branch.system, branch.timeline)
            )
        if isinstance(verdict, Decision):
            self.ledger.record(gids[0].txid, verdict, tuple(records))
        else:
            self.ledger.verdicts[gids[0].txid] = verdict
        return gids

    async def _prepare(self, participant: ScriptedParticipant, gid: Gid) -> Evidence:
        branch = await participant.begin(gid, timeout_s=1)
        result = await branch.prepare()
        assert result.evidence is not None
        return result.evidence

    def foreign(self, name: Gid | Foreign, age_s: float = 5.0) -> None:
        self.orders.foreign.append(PreparedBranch(name, "dba", "orders", time.time() - age_s, age_s, 77))

    def run(self, *args: str) -> Ran:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(args))
        shown = self.capsys.readouterr()
        return Ran(int(caught.value.code or 0), shown.out, shown.err)

    def json(self, *args: str) -> Any:
        ran = self.run(*args, "-o", "json")
        return json.loads(ran.out)


def aged(stage: Stage, gid: Gid, age_s: float) -> None:
    """Let the list say that ``gid`` has been prepared for so long."""
    participant = stage.orders if gid in stage.orders.prepared else stage.payments
    branch = next(one for one in asyncio.run(participant.in_doubt()) if one.gid == gid)
    del participant.prepared[gid]
    participant.foreign.append(replace(branch, age_s=age_s))
