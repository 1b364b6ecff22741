"""The record of an acceptor for one transaction, and how a request changes it.

Each instance of a transaction is decided separately (:mod:`.synod`). One phase 1a is for all instances (Gray
and Lamport, "Consensus on Transaction Commit", 2006, §4.2), so the record has one promise for all instances:
a promise for more instances than were asked for is always safe.
"""

from __future__ import annotations

import msgspec

from undoubt.coordinator.paxos.errors import PeerMisbehaved
from undoubt.coordinator.paxos.messages import ABORTED, REST, BranchInstance, Known, Phase1a, Phase2a, Value
from undoubt.coordinator.paxos.synod import FIRST, Acceptance, Accepted, Ballot
from undoubt.coordinator.quorum import Joint
from undoubt.participants.ids import TxId
from undoubt.participants.plural import plural


class AcceptorRecord(msgspec.Struct, frozen=True, array_like=True):
    """The promise and acceptances for one transaction. ``promised`` never decreases. ``acceptors`` never
    changes, because another set of acceptors could choose another value."""

    txid: TxId
    acceptors: Joint
    promised: Ballot = FIRST
    known: Known = Known()

    def instance(self, position: int) -> Acceptance[Value]:
        """The state of the instance at ``position``."""
        return Acceptance(self.promised, self.known.instance(position))

    def on_1a(self, request: Phase1a) -> AcceptorRecord | None:
        """Return the record after the promise; None if the request is refused."""
        answer = self.instance(REST).on_1a(request.ballot)
        return msgspec.structs.replace(self, promised=answer.state.promised) if answer.granted else None

    def on_2a(self, request: Phase2a) -> AcceptorRecord | None:
        """Return the record after the acceptance of the whole bundle; None if the whole bundle is refused.

        Raises PeerMisbehaved for a bundle that no correct leader sends: without a list in the first ballot,
        with another list than before, or with another value in a ballot that was used already.
        """
        check_bundle(request)
        branches = self.known.branches or request.branches
        if request.branches and request.branches != branches:
            raise PeerMisbehaved(
                f"{self.txid} has branches {_names(branches)}, not {_names(request.branches)}"
            )
        values = request.values if request.branches else (ABORTED,) * len(branches)
        accepted = list[Accepted[Value] | None]()
        for position in range(len(branches)):
            value = values[position]
            instance = self.instance(position)
            if value is not None:
                answer = instance.on_2a(request.ballot, value)
                if not answer.granted:
                    return None
                instance = answer.state
            accepted.append(instance.accepted)
        unnamed = self.known.unnamed
        if not request.branches:
            if not self.instance(REST).on_2a(request.ballot, ABORTED).granted:
                return None
            unnamed = request.ballot
        known = Known(branches, tuple(accepted), unnamed)
        return msgspec.structs.replace(self, promised=request.ballot, known=known)


def check_bundle(request: Phase2a) -> None:
    """Raise PeerMisbehaved if the parts of ``request`` are inconsistent."""
    numbers = [branch.number for branch in request.branches]
    if numbers != sorted(set(numbers)):
        raise PeerMisbehaved(
            f"{request.txid}: branches {_names(request.branches)} are not in order of number"
        )
    if len(request.values) != len(numbers):
        branches = plural(len(numbers), "branch", "branches")
        raise PeerMisbehaved(f"{request.txid}: {plural(len(request.values), 'value')} for {branches}")
    if numbers and all(value is None for value in request.values):
        raise PeerMisbehaved(f"{request.txid}: a bundle without a value")
    if not numbers and request.ballot == FIRST:
        raise PeerMisbehaved(f"{request.txid}: the first ballot does not say which branches there are")


def _names(branches: tuple[BranchInstance, ...]) -> list[str]:
    return [f"{branch.number}:{branch.participant}" for branch in branches]
