"""Holds linearizable reads back until the leader has confirmed that it leads, and then until its commit index
of that time is applied.

All reads of one turn of the loop share one round of heartbeats (Ongaro's thesis §6.4).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from undoubt.coordinator.node.errors import NotLeading
from undoubt.coordinator.raft import NotLeader, Raft, ReadState

_Waiter = asyncio.Future[None]


class ReadQueue:
    def __init__(self) -> None:
        self.new: list[_Waiter] = []
        """Reads since the last :meth:`begin`."""
        self._asked: dict[bytes, list[_Waiter]] = {}
        self.confirmed: deque[tuple[int, list[_Waiter]]] = deque()
        """Confirmed reads, each with the index that has to be applied first, in order."""
        self._number = 0

    def ask(self, loop: asyncio.AbstractEventLoop) -> _Waiter:
        future: _Waiter = loop.create_future()
        self.new.append(future)
        return future

    def begin(self, raft: Raft) -> None:
        """Begin a round for all new reads."""
        if not self.new:
            return
        waiters, self.new = self.new, []
        self._number += 1
        context = self._number.to_bytes(8, "big")
        try:
            raft.read_index(context)
        except NotLeader as error:
            _fail(waiters, NotLeading(error.leader))
        else:
            self._asked[context] = waiters

    def answered(self, states: Iterable[ReadState], applied: int) -> None:
        for state in states:
            self.confirmed.append((state.index, self._asked.pop(state.context)))
        self.applied(applied)

    def applied(self, index: int) -> None:
        while self.confirmed and self.confirmed[0][0] <= index:
            for future in self.confirmed.popleft()[1]:
                if not future.done():
                    future.set_result(None)

    def lost(self, contexts: Iterable[bytes], leader: int) -> None:
        for context in contexts:
            _fail(self._asked.pop(context), NotLeading(leader))

    def fail(self, error: BaseException) -> None:
        """Fail all reads with ``error``."""
        waiters = [*self.new, *(one for asked in self._asked.values() for one in asked)]
        waiters += [one for _, confirmed in self.confirmed for one in confirmed]
        self.new, self._asked = [], {}
        self.confirmed.clear()
        _fail(waiters, error)


def _fail(waiters: Iterable[_Waiter], error: BaseException) -> None:
    for future in waiters:
        if not future.done():
            future.set_exception(error)
