"""What must be so once everything is healed: from the databases, from the ledger, from what was told.

None of it asks undoubt about itself alone: the databases say what was applied, the applications what they
were told, the ledger what was decided; all three must agree.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from tests.faults.machines import MachineFailed
from tests.faults.stage import Stage
from tests.linearizability.check import violations
from tests.linearizability.history import Call
from tests.linearizability.recorder import Recorder
from tests.prove.bank import Audit, audit, transfers
from tests.servers import prepared
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.coordinator.settings import PROTOCOLS
from undoubt.participants.ids import TxId

PATIENCE_S = 60.0
"""For so long in-doubt transactions may fail to get fewer; twenty times a session's life."""
AFTER_HEALING = 20
"""Transfers that each coordinator has acknowledged after healing, before it is told to end."""
RECORDS_AT_ONCE = 1000


@dataclass
class Verdict:
    """What is wrong, in words; ``left``: what is still in doubt, prepared branches and unfinished
    transactions."""

    found: Audit
    left: list[str]
    prepared: int
    disagreeing: list[str]
    heuristics: list[str]
    impossible: list[str]
    calls: int
    answered: int
    held_twice: list[str]
    tokens_out_of_order: list[str]
    failures: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        return {
            "acknowledged_lost": len(self.found.acknowledged_lost),
            "half_applied": len(self.found.half_applied),
            "aborted_applied": len(self.found.aborted_applied),
            "money": self.found.money,
            "in_doubt_after_heal": len(self.left),
            "prepared_after_heal": self.prepared,
            "disagreeing_with_ledger": len(self.disagreeing),
            "heuristics": len(self.heuristics),
            "linearizable": not self.impossible,
            "locks_held_twice": len(self.held_twice),
            "tokens_out_of_order": len(self.tokens_out_of_order),
            "ledger_calls": self.calls,
            "ledger_answers": self.answered,
        }

    def wrong(self) -> list[str]:
        """One line each."""
        named = {
            "acknowledged and lost": self.found.acknowledged_lost,
            "half applied": self.found.half_applied,
            "aborted and applied": self.found.aborted_applied,
            "in doubt": self.left,
            "not as the ledger has it": self.disagreeing,
            "heuristic": self.heuristics,
            "not linearizable": self.impossible,
            "a lock of two": self.held_twice,
            "tokens": self.tokens_out_of_order,
        }
        lines = [f"{what}: {one}" for what, names in named.items() for one in names]
        return [*lines, *([f"money: {self.found.money}"] if self.found.money else []), *self.failures]


async def judged(stage: Stage) -> Verdict:
    """To be asked once nothing is broken any more, while the applications still run. Ends them."""
    failures: list[str] = []
    try:
        await _alive(stage)
    except MachineFailed as error:
        failures.append(str(error))
    ended = await asyncio.gather(*(each.end() for each in stage.coordinators), return_exceptions=True)
    for trouble in ended:
        if isinstance(trouble, MachineFailed):
            failures.append(str(trouble))
        elif trouble is not None:
            raise trouble
    stage.listen()
    told = stage.told
    ledger, history = await ClusterLedger.open(stage.ledger_settings), told.history
    try:
        left = await _quiet(stage, ledger)
        records = await _records(Recorder(ledger, "judge", history), told.begun)
        heuristics = [f"{each.gid} {each.kind}" for each in await ledger.heuristics()]
    finally:
        await ledger.close()
    found = await audit(stage.dsns, told.acknowledged, told.aborted)
    if stage.protocol != "2pc":
        history.calls += _by_recovery(stage)
    return Verdict(
        found,
        left,
        len(found.prepared),
        _disagreeing(stage, records, await transfers(stage.dsns)),
        heuristics,
        violations(history),
        len(history.calls),
        sum(call.result is not None for call in history.calls),
        told.holders.held_twice(),
        told.holders.out_of_order(),
        failures + [f"astray: {name}: {why}" for name, why in told.astray.items()],
    )


async def _alive(stage: Stage) -> None:
    """Every coordinator commits again. Raises ``MachineFailed`` if one does not."""
    stage.listen()
    before = {name: _acknowledged(stage, name) for name in _names(stage)}
    most, since = sum(before.values()), time.monotonic()
    while any(_acknowledged(stage, name) < before[name] + AFTER_HEALING for name in before):
        await asyncio.sleep(0.1)
        stage.check()
        stage.listen()
        if (now := sum(_acknowledged(stage, name) for name in before)) > most:
            most, since = now, time.monotonic()
        if time.monotonic() - since > PATIENCE_S:
            raise MachineFailed(f"nothing was acknowledged for {PATIENCE_S:g} s after healing")


def _names(stage: Stage) -> list[str]:
    return [coordinator.name for coordinator in stage.coordinators]


def _acknowledged(stage: Stage, coordinator: str) -> int:
    return sum(name.startswith(f"{coordinator}.") for name in stage.told.acknowledged)


async def _quiet(stage: Stage, ledger: ClusterLedger) -> list[str]:
    """What is in doubt when it has ceased to get less; nothing, as it should be."""
    fewest, since = None, time.monotonic()
    while True:
        left = [gid for dsn in stage.dsns.values() for gid in await prepared(dsn)]
        left += [f"{record.txid} {record.decision}" for record in await ledger.unfinished()]
        if not left:
            return []
        if fewest is None or len(left) < fewest:
            fewest, since = len(left), time.monotonic()
        if time.monotonic() - since > PATIENCE_S:
            return left
        await asyncio.sleep(0.2)


async def _records(ledger: Recorder, begun: dict[str, str]) -> dict[str, RecordedDecision]:
    """What the ledger has of each transfer."""
    found: dict[str, RecordedDecision] = {}
    names = list(begun)
    for first in range(0, len(names), RECORDS_AT_ONCE):
        some = {name: TxId.parse(begun[name]) for name in names[first : first + RECORDS_AT_ONCE]}
        records = await ledger.records(some.values())
        found |= {name: records[txid] for name, txid in some.items()}
    return found


def _by_recovery(stage: Stage) -> list[Call]:
    """What nobody recorded: the node that leads may have decided any transaction whose protocol has a
    termination of its own, at any time, either way. The first decision is the only one all the same."""
    protocol = str(PROTOCOLS[stage.protocol])
    begun = [TxId.parse(txid) for txid in stage.told.begun.values()]
    return [
        Call("recovery", "decide", 0.0, session=txid.session, seq=txid.seq, asked=asked, protocol=protocol)
        for txid in begun
        for asked in ("commit", "abort")
    ]


def _disagreeing(stage: Stage, records: dict[str, RecordedDecision], applied: set[str]) -> list[str]:
    """COMMIT is recorded of exactly those transfers that some database has applied. Of Paxos Commit's, the
    ledger only has a copy, which a coordinator that dies may not have made."""
    may_lack_it = stage.protocol == "paxos"
    wrong = [
        f"{name} ({stage.told.begun[name]}): {record}, and {'' if name in applied else 'not '}applied"
        for name, record in records.items()
        if (record is RecordedDecision.COMMIT) is not (name in applied)
        and not (may_lack_it and record is RecordedDecision.NOT_RECORDED)
    ]
    return wrong + [f"{name}: applied, and never begun" for name in sorted(applied - records.keys())]
