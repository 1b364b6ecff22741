"""The messages of an outbox: what a branch publishes, and the calls by which a relay reads and removes it.

A message is visible in the outbox of a database exactly if the branch that published it has committed there.
It stays until it is removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from undoubt.participants.ids import Gid

NAME_BYTES_MAX = 200
"""Of a topic, and of a key."""
PAYLOAD_BYTES_MAX = 2**20
HEADERS_BYTES_MAX = 8_192
BACKLOG_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Publication:
    """A message as it is published. ``headers`` have lower-case names, among them ``content-type``."""

    topic: str
    key: str | None
    payload: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Lane:
    """What is delivered in order: the messages of one topic and key. A message without a key is a lane of its
    own, which ``alone`` names by the message's id."""

    topic: str
    key: str | None
    alone: int | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it is delivered. ``id`` orders the messages of one lane. ``dedupe_id`` is the same in each
    delivery, and no other message of any database has it. ``published_at``: seconds since 1970, by the clock
    of the database."""

    id: int
    dedupe_id: str
    topic: str
    key: str | None
    payload: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    published_at: float

    @property
    def lane(self) -> Lane:
        return Lane(self.topic, self.key, self.id if self.key is None else None)


@dataclass(frozen=True, slots=True)
class Backlog:
    """The messages that an outbox holds. ``oldest_s``: how long ago the oldest one was published, by the
    clock of the database; 0 if there is none. At most ``BACKLOG_MAX`` messages are counted."""

    messages: int
    oldest_s: float


@runtime_checkable
class PublishingBranch(Protocol):
    """A branch whose database has an outbox."""

    async def publish(self, publication: Publication) -> str:
        """Write a message in the transaction of the branch; returns its dedupe id. With a key, waits for the
        end of other branches that have published with the same topic and key. Fails; a repeated call
        publishes another message; not after a restart."""
        ...


class OutboxReader(Protocol):
    """The outbox of one database, read by one session, for one event loop. Every call fails with
    ``ParticipantError``; after that the session is gone, and with it the claims."""

    async def claim(self, topics: Iterable[str]) -> frozenset[str]:
        """Claim ``topics`` that have messages, or all topics that have some if ``topics`` is empty. Returns
        all topics that are claimed by this session. A topic is claimed by one session at a time, until that
        session ends."""
        ...

    async def read(self, topics: Iterable[str], *, without: Sequence[Lane], limit: int) -> list[Message]:
        """The messages of ``topics`` in the order of their ids, at most ``limit``, except those of the lanes
        ``without``. If a message of a key is returned, all earlier ones of the key are too, unless they were
        removed."""
        ...

    async def backlog(self, topics: Iterable[str]) -> Backlog:
        """What it holds of ``topics``, or of all topics if ``topics`` is empty, claimed or not."""
        ...

    async def remove(self, dedupe_ids: Sequence[str]) -> None:
        """Remove messages. May be repeated."""
        ...

    async def close(self) -> None:
        """End the session. Never fails; the next call opens another one."""
        ...


def dedupe_id(gid: Gid, position: int) -> str:
    """The dedupe id of message number ``position`` of branch ``gid``. The gid itself is not told to receivers
    of messages: its tag is a proof."""
    return f"{gid.ledger}:{gid.txid}:{gid.branch}:{position}"
