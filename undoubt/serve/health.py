"""Serves the health and the metrics of a node over HTTP, at ``node.health``: for probes and for Prometheus.

Answers hold numbers and the names of participants, nothing by which a transaction could be decided or
read; so clients need no token, and there is no TLS. It needs the extra ``sidecar``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from starlette.types import Receive, Scope, Send

from undoubt.coordinator.node.node import Node
from undoubt.metrics import Metrics
from undoubt.participants.bounds import OutOfBounds
from undoubt.participants.errors import UsageError
from undoubt.serve.sidecar.health import METRICS_TYPE
from undoubt.serve.sidecar.settings import SidecarSettings
from undoubt.serve.sidecar.sockets import listening
from undoubt.serve.sidecar.types import Check, Health, Leading

JSON_TYPE = "application/json"


class NodeHealth:
    """The ASGI application. ``metrics`` counts what recovery does in this process."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._registry = CollectorRegistry()
        self._registry.register(NodeGauges(node))
        self.metrics = Metrics(self._registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; its body is not read."""
        del receive
        status, kind, body = self._answer(scope["method"], scope["path"])
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _answer(self, method: str, path: str) -> tuple[int, str, bytes]:
        if method not in {"GET", "HEAD"}:
            return 405, JSON_TYPE, b'{"name":"NoSuchMethod"}'
        match path:
            case "/livez":
                return _json(200, Health(ok=True))
            case "/readyz":
                health = ready(self._node)
                return _json(200 if health.ok else 503, health)
            case "/leader":
                return _json(200 if self._node.leads else 503, Leading(self._node.leads))
            case "/metrics":
                return 200, METRICS_TYPE, generate_latest(self._registry)
            case _:
                return 404, JSON_TYPE, b'{"name":"NoSuchPath"}'


def ready(node: Node) -> Health:
    """Whether the cluster can count on this node: it knows a leader, has applied all that it knows to be
    committed, and its disk stores. A rolling restart goes on to the next node only then."""
    raft = node.replica.raft
    checks = (
        Check("leader", bool(raft.leader), "" if raft.leader else "no leader is known"),
        _check(
            "caught_up",
            raft.applied_index < raft.commit_index,
            f"entry {raft.applied_index} of {raft.commit_index} is applied",
        ),
        _check("disk_full", raft.disk_full, "there is no room on the disk"),
        _check("disk_stalled", raft.disk_stalled, "the disk does not finish a write"),
    )
    return Health(all(check.ok for check in checks), tuple(check for check in checks if not check.ok))


def _check(name: str, fails: bool, why: str) -> Check:
    return Check(name, not fails, why if fails else "")


def _json(status: int, document: object) -> tuple[int, str, bytes]:
    return status, JSON_TYPE, msgspec.json.encode(document)


class NodeGauges:
    """A collector of what ``undoubt cluster status`` shows of this node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by prometheus_client, once for each answer."""
        status = self._node.operator.status()
        for name, text, value in (
            ("leads", "Whether this node leads and answers as the leader.", self._node.leads),
            ("knows_leader", "Whether this node knows a leader.", bool(status.leader)),
            ("term", "The term of Raft.", status.term),
            ("commit_index", "The last entry that this node knows to be committed.", status.commit_index),
            ("applied_index", "The last entry that this node has applied.", status.applied_index),
            ("disk_full", "Whether there is no room on the node's disk.", status.disk_full),
            ("disk_stalled", "Whether the node's disk does not finish a write.", status.disk_stalled),
            ("sessions", "Open sessions of coordinators.", status.sessions),
            ("unfinished", "Decisions that are not applied everywhere.", status.unfinished),
            (
                "certificate_expiry_timestamp_seconds",
                "When the node's certificate expires, in seconds since 1970; 0 without TLS.",
                status.certificate_until,
            ),
        ):
            yield GaugeMetricFamily(f"undoubt_node_{name}", text, float(value))


@contextlib.asynccontextmanager
async def serving(health: NodeHealth, listen: str) -> AsyncIterator[str]:
    """Serve at ``listen``, ``host:port``; the value is the address. Raises ``UsageError``."""
    try:
        settings = SidecarSettings(socket="", listen=listen)
    except OutOfBounds:
        raise UsageError(f"node.health must be host:port, not {listen!r}") from None
    async with listening(health, settings, "node.health") as [place]:
        yield place
