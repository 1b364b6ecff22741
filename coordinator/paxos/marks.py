"""The marks of an acceptor, below which its records are deleted and must never be made again.

An acceptor without a record would accept the first ballot. If a transaction's records are deleted and a
message of its coordinator arrives later, that acceptance could make a decision that contradicts the first
decision. So a mark is stored in the same transaction on disk in which the records are deleted, and the only
answer for transactions below the mark is ``Forgotten``.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from undoubt.coordinator.paxos.synod import Natural
from undoubt.participants.ids import TxId


class Marks(msgspec.Struct, frozen=True, array_like=True):
    """Which transactions are forgotten. Of a session below ``next_session`` that is in ``floors``: those
    below that sequence number. Of a session below ``next_session`` that is not in ``floors``: all. Of
    sessions from ``next_session`` on: none.

    ``floors`` are pairs (session, floor) in ascending order.
    """

    next_session: Natural = 1
    floors: tuple[tuple[Natural, Natural], ...] = ()

    def below(self) -> Mapping[int, int]:
        return dict(self.floors)

    def joined(self, other: Marks) -> Marks:
        """Return the marks of everything that either has forgotten. Marks only increase, in whatever order
        they are reported."""
        mine, others = self.below(), other.below()
        floors = dict[int, int]()
        for session in mine.keys() | others.keys():
            alive = [
                marks.get(session, 1 if session >= each.next_session else None)
                for each, marks in ((self, mine), (other, others))
            ]
            known = [floor for floor in alive if floor is not None]
            if len(known) == len(alive):
                floors[session] = max(known)
        return Marks(max(self.next_session, other.next_session), tuple(sorted(floors.items())))


def forgotten(txid: TxId, next_session: int, floors: Mapping[int, int]) -> bool:
    """Whether ``txid`` is below the marks; ``floors`` as from :meth:`Marks.below`."""
    floor = floors.get(txid.session)
    return txid.session < next_session if floor is None else txid.seq < floor
