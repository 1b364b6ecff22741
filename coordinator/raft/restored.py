"""What a node begins with: what its disk held, or the first configuration of a new cluster."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from undoubt.coordinator.raft.messages import Configuration, Entry, HardState, SnapshotMeta
from undoubt.participants.invariant import invariant


class RestoredState(msgspec.Struct, frozen=True):
    """What was found on disk. ``applied`` is what the state machine stored together with its effects.

    Of an empty disk: everything as by default; such a node learns all from a leader, and stands for
    nothing before it is in a configuration.
    """

    hard_state: HardState = HardState()
    snapshot: SnapshotMeta = SnapshotMeta()
    entries: tuple[Entry, ...] = ()
    applied: int = 0


def bootstrap(voters: Iterable[int], learners: Iterable[int] = ()) -> RestoredState:
    """What each first node of a new cluster starts from (and stores first): the same for all of them.

    The configuration stands at index 1, so that whoever joins later with an empty log is given it.
    """
    configuration = Configuration(incoming=frozenset(voters), learners=frozenset(learners))
    invariant(bool(configuration.incoming), "a cluster needs a voter")
    return RestoredState(HardState(term=1), SnapshotMeta(1, 1, configuration), (), 1)
