"""What an acceptor has forgotten: it deletes records, and must never begin anew where one was.

An acceptor without a record would accept the first ballot. If a transaction's records are deleted and a
message of its coordinator is still under way, that acceptance could make a decision which contradicts the
one that was made. So with the records goes a mark, in the same transaction on disk, and below the mark
nothing is answered but "forgotten".
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from undoubt.coordinator.paxos.synod import Natural
from undoubt.participants.ids import TxId


class Marks(msgspec.Struct, frozen=True, array_like=True):
    """Of each session below ``next_session`` that is in ``floors``: forgotten below that sequence number. Of
    those that are not there: forgotten as a whole. From ``next_session`` on: nothing is.

    ``floors`` are pairs (session, floor) in ascending order.
    """

    next_session: Natural = 1
    floors: tuple[tuple[Natural, Natural], ...] = ()

    def below(self) -> Mapping[int, int]:
        return dict(self.floors)

    def joined(self, other: Marks) -> Marks:
        """What is forgotten by either: marks only rise, in whatever order they are reported."""
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
    """``floors`` as from :meth:`Marks.below`."""
    floor = floors.get(txid.session)
    return txid.session < next_session if floor is None else txid.seq < floor
