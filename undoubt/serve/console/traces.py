"""Keeps when each step of each transaction happened in this process, for the picture of one transaction.

The commit protocols and recovery call an observer at their named steps; the book reports beginnings and ends.
The newest transactions are kept, each with a bounded number of moments."""

from __future__ import annotations

import enum
import time
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from undoubt.coordinator.protocols.steps import Observer
from undoubt.participants.ids import Foreign, Gid, InvalidName, TxId

TRANSACTIONS_MAX = 5_000
MOMENTS_MAX = 400

Moment = tuple[str, int, float]
"""A step, the number of its branch (0: the whole transaction), and when: seconds since 1970."""


@dataclass(slots=True)
class _Trace:
    moments: list[Moment] = field(default_factory=list)
    participants: dict[int, str] = field(default_factory=dict)


class Traces:
    """The moments of the newest transactions, by id."""

    def __init__(self) -> None:
        self._traces: OrderedDict[str, _Trace] = OrderedDict()

    def note(self, txid: str, step: str, branch: int = 0, participant: str = "") -> None:
        """Keep that ``step`` happened now, of the whole transaction or of a branch in ``participant``."""
        trace = self._traces.get(txid)
        if trace is None:
            trace = self._traces[txid] = _Trace()
            if len(self._traces) > TRANSACTIONS_MAX:
                self._traces.popitem(last=False)
        if len(trace.moments) < MOMENTS_MAX:
            trace.moments.append((step, branch, time.time()))
            if branch:
                trace.participants[branch] = participant

    def observe(self, step: enum.StrEnum, subject: str) -> None:
        """The observer: keep ``step`` of a branch or of a transaction; a step of a participant is not
        kept."""
        gid = Gid.parse(subject)
        if isinstance(gid, Gid):
            self.note(str(gid.txid), str(step), gid.branch, gid.participant)
        elif _is_transaction(gid):
            self.note(subject, str(step))

    def of(self, txid: str) -> list[dict[str, Any]]:
        """The moments of one transaction, in order; empty if none are kept."""
        trace = self._traces.get(txid)
        if trace is None:
            return []
        return [{"step": step, "branch": branch, "at": at} for step, branch, at in trace.moments]

    def participants_of(self, txid: str) -> dict[int, str]:
        """The participants of its branches, by number, as far as they are known here."""
        trace = self._traces.get(txid)
        return {} if trace is None else dict(trace.participants)


def _is_transaction(name: Foreign) -> bool:
    try:
        TxId.parse(str(name))
    except InvalidName:
        return False
    return True


def also(observe: Observer | None, traces: Traces) -> Observer:
    """An observer that keeps each step in ``traces``, and then calls ``observe``, if there is one."""
    if observe is None:
        return traces.observe
    first = observe

    def both(step: enum.StrEnum, subject: str) -> Awaitable[None] | None:
        traces.observe(step, subject)
        return first(step, subject)

    return both
