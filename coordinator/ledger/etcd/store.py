"""Reads and changes of keys: each is one transaction of etcd.

A change reads its keys in one transaction, computes what to write, and writes it if none of the keys has
changed since; if one has, it computes again from what the refused transaction has read (optimistic
concurrency control). So each change is serializable, and one whose answer was lost finds its own effect.

Every answer shows whether etcd was set back: its cluster is not the one on which the incarnation began (a
restored snapshot), or its revision is lower than one that this process has seen before it asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import SystemRandom
from typing import NamedTuple, TypeVar

from undoubt.coordinator.errors import LedgerMissing, LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.client import EtcdClient
from undoubt.coordinator.ledger.etcd.keyspace import (
    FORMAT,
    Era,
    Keyspace,
    above_all,
    decode,
    encode,
    number,
    value_of,
)
from undoubt.coordinator.ledger.move_mark import check_lives
from undoubt.participants.backoff import pauses_around

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = (0.002, 0.1)
"""The shortest and the longest pause before a change that another one has overtaken is tried again."""
SESSION_SKIP = 1 << 32
"""More sessions than any ledger can open after its backup, so that no number is issued twice."""
PAGE = 1_000
"""Most keys in one answer."""
KEYS_MAX = 100
"""Most keys that one transaction reads; what is left of the operations is for the era and for writes."""

_random = SystemRandom()


class KeySnapshot:
    """What keys had at one revision."""

    def __init__(self, found: Mapping[bytes, messages.KeyValue | None]) -> None:
        self._found = found

    def __getitem__(self, key: bytes) -> bytes | None:
        """The value of ``key``; None if it is absent."""
        kv = self._found[key]
        return None if kv is None else kv.value

    def get(self, key: bytes, kind: type[T]) -> T | None:
        """The decoded value of ``key``; None if it is absent."""
        value = self[key]
        return None if value is None else decode(value, kind)

    def number(self, key: bytes, default: int) -> int:
        value = self[key]
        return default if value is None else value_of(value)

    def revision(self, key: bytes) -> int:
        """The revision at which ``key`` was written; 0 if it is absent."""
        kv = self._found[key]
        return 0 if kv is None else kv.mod_revision

    def unchanged(self, keys: Iterable[bytes]) -> list[messages.Compare]:
        return [messages.unchanged(key, self.revision(key)) for key in keys]


class Asked(NamedTuple):
    """What this process knew when it sent a request: the answer must not be from before that."""

    revision: int = 0
    generation: int = 0
    """How many incarnations this process had begun."""


Compute = Callable[[KeySnapshot], tuple[Sequence[messages.EtcdOperation], T]]
"""What to write, and the result if it is written. It may be called several times, and may find that it was
carried out before. What it raises ends the change."""


class EtcdStore:
    """The keys of one ledger at one etcd."""

    def __init__(self, client: EtcdClient) -> None:
        self.client = client
        self.keys = Keyspace(client.address.prefix)
        self.era = Era(FORMAT, "", 0, 0)
        self.era_revision = 0
        """The revision at which the era was written."""
        self.clock_revision = 0
        """The last revision of the ledger's clock that this process has read, once a second."""
        self.seen = Asked()
        self._beginning = asyncio.Lock()

    async def find(self) -> None:
        """Read the era of the ledger. Raises ``LedgerMissing``, ``LedgerUnusable``, ``LedgerUnavailable``."""
        answer = await self.client.transact(messages.EtcdTransaction(success=[messages.get(self.keys.era)]))
        (kv,) = _found(answer, [self.keys.era]).values()
        await self._know(kv, answer.header, Asked())

    async def read(self, keys: Iterable[bytes]) -> KeySnapshot:
        """The values of ``keys``, at most :data:`KEYS_MAX`, at one revision."""
        asked = [self.keys.era, *dict.fromkeys(keys)]
        while True:
            asked_at = self.seen
            answer = await self.client.transact(
                messages.EtcdTransaction(success=list(map(messages.get, asked)))
            )
            found = _found(answer, asked)
            if await self._know(found[self.keys.era], answer.header, asked_at):
                return KeySnapshot(found)

    async def change(
        self,
        keys: Iterable[bytes],
        compute: Compute[T],
        *,
        looked: Iterable[bytes] = (),
    ) -> T:
        """Change keys as ``compute`` says, from the values of ``keys`` and ``looked``; the latter may change
        before the write. Raises ``LedgerUnavailable``, ``LedgerUnusable``, and what ``compute`` raises."""
        kept = [self.keys.era, *dict.fromkeys(keys)]
        asked = list(dict.fromkeys([*kept, *looked]))
        snapshot = await self.read(asked)
        loop = asyncio.get_running_loop()
        end = loop.time() + self.client.timeout_s
        for pause_s in pauses_around(*RETRY_S, _random):
            operations, result = compute(snapshot)
            if not operations:
                return result
            transaction = messages.EtcdTransaction(
                snapshot.unchanged(kept), operations, list(map(messages.get, asked))
            )
            asked_at = self.seen
            answer = await self.client.transact(transaction)
            if answer.succeeded:
                self.note(answer.header, asked_at)
                return result
            found = _found(answer, asked)
            await asyncio.sleep(pause_s)
            if await self._know(found[self.keys.era], answer.header, asked_at):
                snapshot = KeySnapshot(found)
            else:
                snapshot = await self.read(asked)
            if loop.time() > end:
                break
        raise LedgerUnavailable(f"keys of ledger {self.client.url} were changed by others all the time")

    async def pages(
        self, prefix: bytes, *, after: bytes = b"", keys_only: bool = False, limit: int = PAGE
    ) -> tuple[Sequence[messages.KeyValue], bool]:
        """At most ``limit`` keys that begin with ``prefix``, in their order, behind the key ``after``, and
        whether there are more."""
        begin = after + b"\0" if after else prefix
        asked_at = self.seen
        answer = await self.client.range(
            messages.Range(begin, above_all(prefix), limit=limit, keys_only=keys_only)
        )
        self.note(answer.header, asked_at)
        return answer.kvs, answer.more

    async def every(self, prefix: bytes, *, keys_only: bool = False) -> list[messages.KeyValue]:
        """All keys that begin with ``prefix``, read in pages."""
        found: list[messages.KeyValue] = []
        more = True
        while more:
            page, more = await self.pages(prefix, after=found[-1].key if found else b"", keys_only=keys_only)
            found += page
        return found

    async def count(self, prefix: bytes) -> int:
        return (await self.client.range(messages.Range(prefix, above_all(prefix), count_only=True))).count

    def fence(self) -> list[messages.Compare]:
        """What a write that did not read before it compares: the era is the one that is known here, and the
        clock was not set back behind what was read here."""
        return [
            messages.unchanged(self.keys.era, self.era_revision),
            messages.after(self.keys.clock, self.clock_revision - 1),
        ]

    @property
    def asked(self) -> Asked:
        """To be taken before a request, for :meth:`note`."""
        return self.seen

    def note(self, header: messages.AnswerHeader, asked: Asked) -> bool:
        """Learn from the header of an answer that contains no era. False if it shows that etcd was set back:
        the next :meth:`read` begins a new incarnation."""
        if asked.generation != self.seen.generation:
            return True
        if header.revision < asked.revision or header.cluster_id != self.era.cluster_id:
            return False
        self._saw(header)
        return True

    def _saw(self, header: messages.AnswerHeader) -> None:
        self.seen = Asked(max(self.seen.revision, header.revision), self.seen.generation)

    def _begin_again(self, revision: int) -> None:
        """What was seen of the time before etcd was set back is not compared any more."""
        self.seen = Asked(revision, self.seen.generation + 1)
        self.clock_revision = 0

    async def _know(self, kv: messages.KeyValue | None, header: messages.AnswerHeader, asked: Asked) -> bool:
        """Learn the era, and begin a new incarnation if the answer shows that etcd was set back. False if the
        keys have to be read again."""
        url = self.client.url
        if asked.generation != self.seen.generation:
            return False
        if kv is None:
            if self.era.incarnation:
                raise LedgerUnusable(f"ledger {url} has lost its era; restore etcd from a snapshot")
            raise LedgerMissing(f"no ledger at {url}; to make a new one: undoubt ledger init")
        era = self._checked(decode(kv.value, Era))
        if max(header.revision, asked.revision) < self.era_revision:
            return False  # an answer from before the era that is known by now
        former, former_revision = self.era, self.era_revision
        self.era, self.era_revision = era, kv.mod_revision
        why = ""
        if header.cluster_id != era.cluster_id:
            why = f"it answers from cluster {header.cluster_id:x}, and not {era.cluster_id:x}"
        elif era.incarnation < former.incarnation:
            why = f"incarnation {former.incarnation} had begun"
        elif header.revision < asked.revision and kv.mod_revision == former_revision:
            why = f"its revision was {asked.revision}, and now is {header.revision}"
        if why:
            await self.begin_incarnation(why, asked, least=former.incarnation)
            return False
        if header.revision < asked.revision:  # it was set back, and another process has begun the incarnation
            self._begin_again(header.revision)
        self._saw(header)
        return True

    def _checked(self, era: Era) -> Era:
        url = self.client.url
        if era.format != FORMAT:
            raise LedgerUnusable(
                f"ledger {url} was written by a newer version of undoubt (format {era.format}; this version"
                f" has {FORMAT}); upgrade undoubt"
            )
        if self.era.ledger_id not in {"", era.ledger_id}:
            raise LedgerUnusable(
                f"ledger {url} is another one than before: {era.ledger_id}, and not {self.era.ledger_id}"
            )
        check_lives(era.move)
        return era

    async def begin_incarnation(self, why: str, asked: Asked, *, issued: int = 0, least: int = 0) -> None:
        """Begin a new incarnation, unless one was begun since ``asked``, because etcd was set back: all
        sessions end, and what they had undecided is forgotten. ``issued``: the number of a session that was
        issued; ``least``: an incarnation that had begun."""
        async with self._beginning:
            if asked.generation != self.seen.generation:
                return
            first: int | None = None
            begun = False
            while not begun:
                first, begun = await self._begun(why, first, issued=issued, least=least)
            self._begin_again(0)

    async def _begun(self, why: str, first: int | None, *, issued: int, least: int) -> tuple[int, bool]:
        """The revision of the era that was found, and whether an incarnation has begun. ``first``: the
        revision that was found before."""
        keys = self.keys
        names = [keys.era, keys.next_session]
        answer = await self.client.transact(messages.EtcdTransaction(success=list(map(messages.get, names))))
        found = KeySnapshot(_found(answer, names))
        era = found.get(keys.era, Era)
        following = found.number(keys.next_session, 1)
        revision = found.revision(keys.era)
        if era is None:
            raise LedgerUnusable(f"ledger {self.client.url} has lost its era; restore etcd from a snapshot")
        check_lives(era.move)
        if (issued and following > issued) or first not in {None, revision}:
            return revision, True  # by another process, or by an attempt whose answer was lost
        incarnation = max(era.incarnation, least) + 1
        new = Era(FORMAT, era.ledger_id, incarnation, answer.header.cluster_id, era.move)
        following = max(following, issued + 1) + SESSION_SKIP
        written = [messages.put(keys.era, encode(new)), messages.put(keys.next_session, number(following))]
        begun = (
            await self.client.transact(messages.EtcdTransaction(found.unchanged(names), written))
        ).succeeded
        if begun:
            log.error(
                "ledger %s was set back: %s. Incarnation %d begins; all sessions were closed, and an operator"
                " has to decide their undecided transactions",
                self.client.url,
                why,
                new.incarnation,
            )
        return revision, begun


def _found(
    answer: messages.TransactionAnswer, asked: Sequence[bytes]
) -> dict[bytes, messages.KeyValue | None]:
    found: dict[bytes, messages.KeyValue | None] = {}
    for key, response in zip(asked, answer.responses, strict=True):
        ranged = response.response_range
        found[key] = ranged.kvs[0] if ranged is not None and ranged.kvs else None
    return found
