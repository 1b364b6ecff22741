"""One node on the bench: messages go in by hand, and what comes out is looked at."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import TypeVar

import msgspec

from undoubt.coordinator.raft import (
    Configuration,
    Entry,
    HardState,
    Message,
    PreVote,
    PreVoteReply,
    Raft,
    RaftSettings,
    Ready,
    RequestVote,
    RequestVoteReply,
    RestoredState,
    Role,
    SnapshotMeta,
)

SETTINGS = RaftSettings(election_ticks=10, heartbeat_ticks=1, trailing_entries=0)
MessageType = TypeVar("MessageType")


def log(*terms: int, first: int = 2) -> tuple[Entry, ...]:
    """Entries of those terms from index ``first`` on (1 is the cluster's beginning)."""
    return tuple(Entry.make(first + at, term, b"%d" % (first + at)) for at, term in enumerate(terms))


class Bench:
    """Node 1, with a disk that stores when it is told to."""

    def __init__(
        self,
        voters: Iterable[int] = (1, 2, 3),
        *,
        terms: tuple[int, ...] = (),
        term: int = 1,
        vote: int = 0,
        learners: Iterable[int] = (),
        settings: RaftSettings = SETTINGS,
        applied: int = 1,
    ) -> None:
        configuration = Configuration(incoming=frozenset(voters), learners=frozenset(learners))
        self.settings = settings
        self.disk = RestoredState(
            HardState(term, vote), SnapshotMeta(1, 1, configuration), log(*terms), applied
        )
        self.restart()

    def restart(self) -> None:
        self.raft = Raft(1, self.settings, Random(1), self.disk)
        self.pending: list[Ready] = []
        self.applied: list[Entry] = []

    def role(self) -> Role:
        """The role now: mypy takes an attribute that was asserted for unchanged until it is assigned."""
        return self.raft.role

    def ready(self) -> Ready:
        """One ``Ready``, not stored yet."""
        ready = self.raft.ready()
        self.pending.append(ready)
        self.applied += ready.committed_entries
        return ready

    def store(self) -> list[Message]:
        """Store everything pending; what may be sent then."""
        sent: list[Message] = []
        for ready in self.pending:
            entries = self.disk.entries
            if ready.entries:
                first = ready.entries[0].index
                entries = (*(entry for entry in entries if entry.index < first), *ready.entries)
            self.disk = msgspec.structs.replace(
                self.disk, hard_state=ready.hard_state or self.disk.hard_state, entries=entries
            )
            sent += self.raft.on_persisted(ready.token)
        self.pending = []
        return sent

    def flow(self) -> list[Message]:
        """Do everything that is to be done, and say what was sent."""
        sent: list[Message] = []
        while not (ready := self.ready()).empty:
            sent += ready.messages_now
            sent += self.store()
            if ready.committed_entries:
                last = ready.committed_entries[-1].index
                self.disk = msgspec.structs.replace(self.disk, applied=last)
                self.raft.on_applied(last)
        self.store()
        return sent

    def step(self, message: Message) -> list[Message]:
        self.raft.step(message)
        return self.flow()

    def ticks(self, count: int) -> list[Message]:
        sent: list[Message] = []
        for _ in range(count):
            self.raft.tick()
            sent += self.flow()
        return sent

    def time_out(self) -> list[Message]:
        """Let time pass until the node asks for pre-votes, or stands."""
        for _ in range(2 * self.settings.election_ticks):
            sent = self.ticks(1)
            if (
                any(isinstance(message, PreVote | RequestVote) for message in sent)
                or self.raft.role is Role.LEADER
            ):
                return sent
        raise AssertionError("no election timeout")

    def lead(self) -> list[Message]:
        """Win an election; what the new leader sends first."""
        self.time_out()
        others = sorted(self.raft.configuration.voters - {1})
        sent: list[Message] = []
        for reply in (PreVoteReply, RequestVoteReply):
            for peer in others:
                if self.raft.role is Role.LEADER:
                    break
                term = self.raft.term + (1 if reply is PreVoteReply else 0)
                if reply is PreVoteReply and self.raft.role is not Role.PRE_CANDIDATE:
                    continue
                sent = self.step(reply(1, peer, term, True))
        assert self.raft.role is Role.LEADER
        return sent


def only(kind: type[MessageType], messages: Iterable[object]) -> list[MessageType]:
    return [message for message in messages if isinstance(message, kind)]


def one(kind: type[MessageType], messages: Iterable[object]) -> MessageType:
    (found,) = only(kind, messages)
    return found
