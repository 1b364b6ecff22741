"""What a leader knows of all: the configuration, and each peer's progress."""

from __future__ import annotations

from undoubt.coordinator.quorum import VoteResult
from undoubt.coordinator.raft.messages import Configuration
from undoubt.coordinator.raft.progress import Progress


class Tracker:
    def __init__(self, configuration: Configuration = Configuration()) -> None:  # noqa: B008 (frozen)
        self.configuration = configuration
        self.progress: dict[int, Progress] = {}

    def configure(self, configuration: Configuration, last_index: int) -> None:
        """Take over ``configuration``; who is new is probed from ``last_index``, who is gone forgotten."""
        self.configuration = configuration
        for node in sorted(configuration.nodes - set(self.progress)):
            self.progress[node] = Progress(last_index)
            # Else a node that has just joined could cost the leader its quorum before it can answer.
            self.progress[node].active = True
        for node in set(self.progress) - configuration.nodes:
            del self.progress[node]

    def reset(self, last_index: int) -> None:
        """A new leader knows nothing of anybody (extended paper §5.3: nextIndex is after its last)."""
        self.progress = {node: Progress(last_index + 1) for node in sorted(self.configuration.nodes)}
        for progress in self.progress.values():
            progress.active = True

    def committed_index(self) -> int:
        """What a quorum holds durably, this node's own disk counted like any other."""
        return self.configuration.quorum.committed_index(
            {node: progress.match for node, progress in self.progress.items()}
        )

    def confirmed_round(self, own: int, own_round: int) -> int:
        """The last round of heartbeats that a quorum has answered."""
        rounds = {node: progress.round for node, progress in self.progress.items()}
        return self.configuration.quorum.committed_index(rounds | {own: own_round})

    def quorum_active(self, own: int) -> bool:
        """Whether a quorum was heard from since :meth:`forget_activity`."""
        heard = {node: node == own or progress.active for node, progress in self.progress.items()}
        return self.configuration.quorum.vote_result(heard) is VoteResult.WON

    def forget_activity(self) -> None:
        for progress in self.progress.values():
            progress.active = False
