"""What tests of the etcd ledger do to it: answers that are lost, requests that arrive late, keys that are
changed from outside."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from tests.coordinator.ledger.signing import Signing
from tests.etcd import EtcdCluster
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.client import Unanswered
from undoubt.coordinator.ledger.etcd.ledger import EtcdLedger
from undoubt.coordinator.ledger.etcd.store import EtcdStore
from undoubt.coordinator.settings import LedgerSettings


class Place:
    """A ledger under a prefix of its own, which any number of processes open."""

    def __init__(self, cluster: EtcdCluster, **settings: Any) -> None:
        self.cluster = cluster
        self.prefix = f"test-{secrets.token_hex(4)}"
        given = {"url": f"{cluster.url}/{self.prefix}", "request_timeout_s": 30.0, **settings}
        self.settings = LedgerSettings(**given)
        self.opened: list[EtcdLedger] = []

    async def open(self, **settings: Any) -> Signing:
        """As another process would, which shares nothing with the others."""
        changed = msgspec.structs.replace(self.settings, **settings)
        ledger = await EtcdLedger.open(changed)
        self.opened.append(ledger)
        return Signing(ledger)


@asynccontextmanager
async def place_in(cluster: EtcdCluster, **settings: Any) -> AsyncIterator[Place]:
    place = Place(cluster, **settings)
    await maintenance.init(place.settings)
    try:
        yield place
    finally:
        await asyncio.gather(*(ledger.close() for ledger in place.opened))


def store_of(ledger: Signing) -> EtcdStore:
    opened = ledger.ledger
    assert isinstance(opened, EtcdLedger)
    return opened.store


class Line:
    """Stands between a ledger and its etcd. ``lose``: requests whose next answer is lost, once; ``hold``:
    called before a request is sent; ``after``: called with each answer, before it is received; it returns the
    answer, or raises. ``sent`` are all requests."""

    def __init__(self, ledger: Signing) -> None:
        opened = ledger.ledger
        assert isinstance(opened, EtcdLedger)
        self.client = opened.client
        self.sent: list[tuple[str, msgspec.Struct]] = []
        self.lose: Callable[[str, msgspec.Struct], bool] = lambda *_: False
        self.hold: Callable[[str, msgspec.Struct], Any] | None = None
        self.after: Callable[[str, msgspec.Struct, Any], Any] | None = None
        self.lost = 0
        self._real = self.client.attempt
        for client in (opened.client, opened.renewing):
            client.attempt = self._attempt  # type: ignore[method-assign]

    async def _attempt(
        self, base: str, path: str, request: msgspec.Struct, kind: type[Any], timeout_s: float
    ) -> Any:
        self.sent.append((path, request))
        if self.hold is not None:
            await self.hold(path, request)
        answer = await self._real(base, path, request, kind, timeout_s)
        if self.lose(path, request):
            self.lose = lambda *_: False
            self.lost += 1
            raise Unanswered("lost by the test")
        return answer if self.after is None else await self.after(path, request, answer)

    async def again(self, path: str, request: msgspec.Struct) -> None:
        """Have a request carried out once more, long after it was sent."""
        kind = messages.TransactionAnswer if path == "kv/txn" else messages.EtcdAnswer
        await self._real(self.client.bases[0], path, request, kind, 30.0)


def writes(path: str, request: msgspec.Struct) -> bool:
    """Whether a request is a transaction that writes."""
    if path != "kv/txn" or not isinstance(request, messages.EtcdTransaction):
        return False
    return any(operation.request_range is None for operation in request.success)


def operations_of(transaction: messages.EtcdTransaction) -> int:
    """The operations of a transaction as etcd counts them against its limit."""
    most = max(len(transaction.compare), len(transaction.success), len(transaction.failure))
    inner = [each.request_txn for each in (*transaction.success, *transaction.failure)]
    return most + max((operations_of(each) for each in inner if each is not None), default=0)
