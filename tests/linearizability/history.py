"""What was asked of a ledger and what it answered, with the moments of asking and of answering.

A call without an answer (its caller died, or got no answer within its deadline) may have taken effect at any
moment after it was asked, or never.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False, slots=True)
class Call:
    """One call. ``result`` None: it was never answered. Moments are of one clock, or of one counter."""

    who: str
    what: str
    asked_at: float
    answered_at: float = math.inf
    session: int = 0
    seq: int = 0
    floor: int = 0
    asked: str = ""
    protocol: str = "2"
    result: str | None = None


@dataclass
class History:
    """``now`` gives moments; equal ones are taken as at the same time, which only allows more."""

    now: Callable[[], float]
    calls: list[Call] = field(default_factory=list)

    def begin(self, who: str, what: str, **of: Any) -> Call:
        """``of``: fields of :class:`Call`."""
        call = Call(who, what, self.now(), **of)
        self.calls.append(call)
        return call

    def end(self, call: Call, result: str) -> None:
        call.result = result
        call.answered_at = self.now()

    @contextlib.contextmanager
    def call(self, who: str, what: str, **of: Any) -> Iterator[Call]:
        """Answered if the block sets ``result``; an error that says for certain what is so becomes one."""
        call = self.begin(who, what, **of)
        try:
            yield call
        except Exception as error:
            name = type(error).__name__
            if name in {"SessionLost", "BranchListMismatch", "Impostor"}:
                self.end(call, name)
            raise
        if call.result is not None:
            self.end(call, call.result)
