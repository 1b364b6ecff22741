"""A ledger in etcd as a place of a move.

The mark is in the key of the era, which every change of the ledger compares: so nothing is written after the
seal. Keys of a ledger that is arriving are written in many transactions, each of which compares that key."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from undoubt.coordinator.errors import LedgerError, LedgerUnavailable, MoveRefused
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.client import EtcdClient
from undoubt.coordinator.ledger.etcd.keyspace import (
    FORMAT,
    Era,
    Keyspace,
    above_all,
    decode,
    encode,
    value_of,
)
from undoubt.coordinator.ledger.etcd.store import PAGE
from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase, MoveStatus, lives
from undoubt.coordinator.ledger.move_rules import (
    not_in,
    occupied,
    other_move,
    sessions_open,
    settled_mark,
)
from undoubt.coordinator.ledger.moving import etcd_keys
from undoubt.coordinator.ledger.moving.image import LedgerImage
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.invariant import invariant

TOGETHER = 100
BYTES_MAX = 500_000
"""Most keys, and bytes of their values, in one transaction; one larger value is written alone."""

Marked = Callable[[MoveMark | None], MoveMark | LedgerError | None]
"""The mark after a change, or the error with which the change is refused."""


class EtcdPlace:
    def __init__(self, settings: LedgerSettings) -> None:
        self._client = EtcdClient(settings)
        self.url = self._client.url
        self._keys = Keyspace(self._client.address.prefix)

    async def look(self) -> MoveStatus | None:
        era, _ = await self._era()
        return None if era is None else await self._status(era)

    async def _status(self, era: Era) -> MoveStatus:
        keys = self._keys
        following = await self._client.range(messages.Range(keys.next_session))
        used = not following.kvs or value_of(following.kvs[0].value) > 1
        return MoveStatus(era.ledger_id, era.move, not used and era.move is None)

    async def seal(self, mark: MoveMark) -> None:
        leases = self._keys.all("lease")

        def sealed(found: MoveMark | None) -> MoveMark | LedgerError:
            if found is None or lives(found):
                return mark
            return found if found.id == mark.id else other_move(found)

        while not await self._marked(sealed, [messages.absent(leases, above_all(leases))]):
            answer = await self._client.range(messages.Range(leases, above_all(leases), keys_only=True))
            if answer.kvs:
                raise sessions_open([str(int(kv.key.split(b"/")[-2], 16)) for kv in answer.kvs])

    async def settle(self, move: str, phase: MovePhase | None) -> None:
        def undone(found: MoveMark | None) -> MoveMark | LedgerError | None:
            if found is None or lives(found):
                return found
            sealed = (found.id, found.phase) == (move, MovePhase.SEALED)
            return None if sealed else other_move(found)

        def settled(found: MoveMark | None) -> MoveMark | LedgerError:
            if phase is None or (mark := settled_mark(found, move, phase)) is None:
                return not_in(found, move, phase or MovePhase.SEALED)
            return mark

        while not await self._marked(undone if phase is None else settled):
            pass

    async def _marked(self, change: Marked, compare: list[messages.Compare] | None = None) -> bool:
        """Change the mark if ``compare`` holds. False if the key was changed meanwhile, or it does not."""
        era, revision = await self._era()
        if era is None:
            raise MoveRefused(f"there is no ledger at {self.url}")
        mark = change(era.move)
        if isinstance(mark, LedgerError):
            raise mark
        if mark == era.move:
            return True
        written = encode(Era(era.format, era.ledger_id, era.incarnation, era.cluster_id, mark))
        answer = await self._client.transact(
            messages.EtcdTransaction(
                [messages.unchanged(self._keys.era, revision), *(compare or [])],
                [messages.put(self._keys.era, written)],
            )
        )
        return answer.succeeded

    async def _era(self) -> tuple[Era | None, int]:
        """The era and the revision of its key. Raises ``MoveRefused`` if there are keys without it."""
        answer = await self._client.range(messages.Range(self._keys.era))
        if answer.kvs:
            era = decode(answer.kvs[0].value, Era)
            if era.format != FORMAT:
                raise MoveRefused(f"the ledger at {self.url} was written by a newer version of undoubt")
            return era, answer.kvs[0].mod_revision
        root = self._keys.root
        left = await self._client.range(messages.Range(root, above_all(root), limit=1, keys_only=True))
        if left.kvs:
            raise MoveRefused(f"there is no ledger at {self.url}, and yet there are keys of one")
        return None, 0

    async def read(self) -> LedgerImage:
        root = self._keys.root
        found: dict[bytes, bytes] = {}
        more, begin = True, root
        while more:
            answer = await self._client.range(messages.Range(begin, above_all(root), limit=PAGE))
            found |= {kv.key: kv.value for kv in answer.kvs}
            more, begin = answer.more, answer.kvs[-1].key + b"\0" if answer.kvs else begin
        return etcd_keys.image_of(self._keys, found)

    def fitted(self, image: LedgerImage) -> LedgerImage:
        untagged = [book.id for book in image.state.sessions.values() if not book.tagged]
        if untagged:
            raise MoveRefused(
                f"session {untagged[0]} is of version 0.1.0, whose names have no tags: a ledger in etcd"
                " accepts none of them. It is dropped after ledger.retention_s"
            )
        return image

    async def write(self, image: LedgerImage) -> None:
        state, keys = image.state, self._keys
        era, revision = await self._era()
        if era is not None and not (found := await self._status(era)).takes(state.ledger_id):
            raise occupied(found.ledger_id)
        cluster = (await self._client.range(messages.Range(keys.era))).header.cluster_id
        written = Era(FORMAT, state.ledger_id, state.incarnation, cluster, state.move)
        answer = await self._client.transact(
            messages.EtcdTransaction(
                [messages.unchanged(keys.era, revision)], [messages.put(keys.era, encode(written))]
            )
        )
        if not answer.succeeded:
            raise LedgerUnavailable(f"another process has changed {self.url} meanwhile: repeat the command")
        revision = answer.header.revision
        await self._write(revision, _all_but(keys))
        for batch in _batches(etcd_keys.keys_of(keys, image)):
            await self._write(revision, [messages.put(*each) for each in batch])

    async def _write(self, revision: int, operations: list[messages.EtcdOperation]) -> None:
        compare = [messages.unchanged(self._keys.era, revision)]
        answer = await self._client.transact(messages.EtcdTransaction(compare, operations))
        if not answer.succeeded:
            raise LedgerUnavailable(f"another process has changed {self.url} meanwhile: repeat the command")

    async def close(self) -> None:
        await self._client.close()


def _all_but(keys: Keyspace) -> list[messages.EtcdOperation]:
    """Deletes all keys of a ledger but the era."""
    invariant(keys.era.startswith(keys.root), "the era is a key of its ledger")
    return [
        messages.delete(keys.root, keys.era),
        messages.delete(keys.era + b"\0", above_all(keys.root)),
    ]


def _batches(written: Iterator[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Keys and values for one transaction each. Acts are written one by one: their order is that of their
    creation."""
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in written:
        alone = b"/act/" in key
        if batch and (alone or len(batch) >= TOGETHER or size + len(value) > BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append((key, value))
        size += len(value)
        if alone:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
