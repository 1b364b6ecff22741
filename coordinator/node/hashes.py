"""Hashes of the state at places of the log that are the same on every node: :mod:`.comparing` compares
them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

INTERVAL_ENTRIES = 8_192
KEPT = 4


class StateHashes:
    """Of this node's states at the last places of the log at which all nodes hash theirs."""

    def __init__(self, state: Callable[[], bytes]) -> None:
        """``state`` encodes it: equal states alike."""
        self.known: dict[int, str] = {}
        self.noted: Callable[[], None] = lambda: None
        self._state = state

    def applied(self, index: int) -> None:
        """All up to the entry at ``index``, and no more, is applied."""
        if index % INTERVAL_ENTRIES:
            return
        self.known[index] = hashlib.sha256(self._state()).hexdigest()
        while len(self.known) > KEPT:
            del self.known[next(iter(self.known))]
        self.noted()
