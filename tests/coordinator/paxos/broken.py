"""Acceptors and leaders with one planted error each. The seeded runs and the search must find them."""

from __future__ import annotations

import msgspec

from undoubt.coordinator.paxos import (
    ABORTED,
    Acceptor,
    AcceptorReply,
    AcceptorRequest,
    PaxosReady,
    Phase1b,
    Recovery,
    Value,
)


class AnswersAtOnce(Acceptor):
    """Sends 1b and 2b before they are stored."""

    def ready(self) -> PaxosReady:
        ready = super().ready()
        return msgspec.structs.replace(ready, replies_now=ready.replies_after_sync, replies_after_sync=())


class ForgetsWithoutAMark(Acceptor):
    """Deletes records and begins anew."""

    def ready(self) -> PaxosReady:
        self._marks, self._floors = type(self._marks)(), {}
        return msgspec.structs.replace(super().ready(), marks=None)


class OfItsOwnMind(Recovery):
    """Proposes *aborted* whatever was accepted."""

    def _value(self, position: int) -> Value | None:
        return ABORTED if super()._value(position) is not None else None


class OneIsEnough(Recovery):
    """Believes the first promise."""

    def step(self, reply: AcceptorReply) -> tuple[tuple[int, AcceptorRequest], ...]:
        if isinstance(reply, Phase1b):
            self._promises |= dict.fromkeys(self.acceptors.voters, reply.known)
        return super().step(reply)


class LowestBallot(Recovery):
    """Takes the value of the lowest ballot that was reported."""

    def _value(self, position: int) -> Value | None:
        if super()._value(position) is None:
            return None
        reported = [known.instance(position) for known in self._promises.values()]
        accepted = [each for each in reported if each is not None]
        return min(accepted, key=lambda each: each.ballot).value if accepted else ABORTED
