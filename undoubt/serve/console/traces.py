"""Keeps when each step of each transaction happened in this process, for the picture of one transaction.

The commit protocols and recovery call an observer at their named steps; the book reports beginnings and ends.
The newest transactions are kept, each with a bounded number of moments."""

from __future__ import annotations

import enum
import time
from collections import OrderedDict
from collections.abc import Awaitable
from typing import Any

from undoubt.coordinator.protocols.steps import Observer
from undoubt.participants.ids import Foreign, Gid, InvalidName, TxId

TRANSACTIONS_MAX = 5_000
MOMENTS_MAX = 400

Moment = tuple[str, int, float]
"""A step, the number of its branch (0: the whole transaction), and when: seconds since 1970."""


class Traces:
    """The moments of the newest transactions, by id."""

    def __init__(self) -> None:
        self._moments: OrderedDict[str, list[Moment]] = OrderedDict()

    def note(self, txid: str, step: str, branch: int = 0) -> None:
        """Keep that ``step`` happened now."""
        moments = self._moments.get(txid)
        if moments is None:
            moments = self._moments[txid] = []
            if len(self._moments) > TRANSACTIONS_MAX:
                self._moments.popitem(last=False)
        if len(moments) < MOMENTS_MAX:
            moments.append((step, branch, time.time()))

    def observe(self, step: enum.StrEnum, subject: str) -> None:
        """The observer: keep ``step`` of a branch or of a transaction; a step of a participant is not
        kept."""
        gid = Gid.parse(subject)
        if isinstance(gid, Gid):
            self.note(str(gid.txid), str(step), gid.branch)
        elif _is_transaction(gid):
            self.note(subject, str(step))

    def of(self, txid: str) -> list[dict[str, Any]]:
        """The moments of one transaction, in order; empty if none are kept."""
        return [
            {"step": step, "branch": branch, "at": at} for step, branch, at in self._moments.get(txid, ())
        ]


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
