"""What the applications have told: what they did, and what the ledger answered them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.holders import Grant, Holders
from tests.linearizability.history import Call, History


@dataclass
class Told:
    """By name of a transfer. Read on with :meth:`read`. Moments are of the monotonic clock."""

    begun: dict[str, str] = field(default_factory=dict)
    """Its transaction's id."""
    acknowledged: dict[str, float] = field(default_factory=dict)
    """When."""
    aborted: dict[str, str] = field(default_factory=dict)
    """Why; as the next two."""
    unknown: dict[str, str] = field(default_factory=dict)
    astray: dict[str, str] = field(default_factory=dict)
    """Its commit ended with an error that says neither."""
    holders: Holders = field(default_factory=Holders)
    """Of locks."""
    _calls: dict[tuple[str, int], Call] = field(default_factory=dict)
    _offsets: dict[Path, int] = field(default_factory=dict)

    def read(self, files: Iterable[Path]) -> None:
        """What was told since. A last line that a SIGKILL cut short was not told."""
        for path in sorted(files):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                whole, _, _ = file.read().rpartition(b"\n")
            if whole:
                self._offsets[path] = self._offsets.get(path, 0) + len(whole) + 1
                for line in whole.splitlines():
                    self._take(path.name, json.loads(line))

    def _take(self, file: str, line: dict[str, Any]) -> None:
        match line:
            case {"begun": name, "txid": txid}:
                self.begun[name] = txid
            case {"acknowledged": name, "at": at}:
                self.acknowledged[name] = at
            case {"aborted": name, "why": why}:
                self.aborted[name] = why
            case {"unknown": name, "why": why}:
                self.unknown[name] = why
            case {"astray": name, "why": why}:
                self.astray[name] = why
            case {"granted": lock, "token": token, "shared": shared, "asked": asked, "at": at}:
                self.holders.grants.append(Grant(lock, token, shared, asked, at))
            case {"held": lock, "token": token, "at": at}:
                self.holders.certain.append((lock, token, at))
            case {"asked": number, "who": who, "what": what, "at": at, "of": of}:
                self._calls[file, number] = Call(who, what, at, **of)
            case {"answered": number, "at": at, "result": result, "session": session}:
                call = self._calls[file, number]
                call.answered_at, call.result, call.session = at, result, session
            case _:
                pass

    @property
    def history(self) -> History:
        """Goes on with what is asked from now on in this process."""
        return History(time.monotonic, list(self._calls.values()))

    def longest_stall_s(self, begin: float, end: float) -> float:
        """Between two moments, the longest time in which nothing was acknowledged."""
        moments = sorted([begin, *(at for at in self.acknowledged.values() if begin <= at <= end), end])
        return max(after - before for before, after in itertools.pairwise(moments))
