"""An etcd of three processes on this machine, and decisions in it as a coordinator would record them.

One decision is one transaction of etcd: if the session's key is there and the decision's is not, put it, else
read it (the server's own order makes the first the only one). Messages are written by hand, field by field
(https://protobuf.dev/programming-guides/encoding; etcd's ``rpc.proto``), so that no library's own work is
counted; gRPC is grpcio's, on the event loop, which was the fastest client of those that were tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.serve.local.parent import die_with_parent
from undoubt.serve.local.ports import free_ports

try:
    import grpc
    import grpc.aio
except ImportError:
    grpc = None

NAMES = ("one", "two", "three")
READY_S = 30.0
SESSION = b"undoubt/session/1"
DECISIONS = b"undoubt/decision/1/"
DECISIONS_END = b"undoubt/decision/10"
"""The first key behind them: "0" follows "/"."""
_EQUAL, _GREATER = 0, 1
_CREATE_REVISION = 1

_encode = msgspec.msgpack.Encoder().encode


def missing() -> str:
    """Why this machine cannot run it; empty if it can."""
    if shutil.which("etcd") is None:
        return "etcd is not installed (Debian: etcd-server)"
    return "grpcio is not installed (pip install grpcio)" if grpc is None else ""


@contextlib.asynccontextmanager
async def etcd(folder: Path) -> AsyncIterator[Etcd]:
    """Running, in ``folder``, with its own defaults: every commit is synchronised to a majority's disks.
    A client of its leader, which has to forward nothing."""
    ports = free_ports(2 * len(NAMES))
    clients, peers = (
        [f"http://127.0.0.1:{port}" for port in some] for some in (ports[: len(NAMES)], ports[len(NAMES) :])
    )
    members = ",".join(f"{name}={peer}" for name, peer in zip(NAMES, peers, strict=True))
    processes = []
    try:
        for name, client, peer in zip(NAMES, clients, peers, strict=True):
            processes.append(await _started(folder, name, client, peer, members))
        leader = await _leader([client.removeprefix("http://") for client in clients])
        async with grpc.aio.insecure_channel(leader) as channel:
            await channel.unary_unary("/etcdserverpb.KV/Put")(written(1, SESSION) + written(2, b"open"))
            yield Etcd(channel, leader)
    finally:
        for process in processes:
            process.kill()
        await asyncio.gather(*(process.wait() for process in processes))


async def _started(
    folder: Path, name: str, client: str, peer: str, members: str
) -> asyncio.subprocess.Process:
    with (folder / f"etcd-{name}.log").open("w") as log:
        return await asyncio.create_subprocess_exec(
            "etcd", "--name", name, "--data-dir", str(folder / f"etcd-{name}"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", members, "--logger", "zap", "--log-level", "error",
            stdout=log, stderr=log, preexec_fn=die_with_parent,
        )  # fmt: skip


class Etcd:
    """Its decisions, over one connection: requests of all callers share it, as HTTP/2 allows."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        """``address``: host and port of the member at the other end of ``channel``."""
        self.channel = channel
        self.address = address
        self._transact = channel.unary_unary("/etcdserverpb.KV/Txn")
        self._range = channel.unary_unary("/etcdserverpb.KV/Range")

    async def decide(self, number: int, branches: tuple[BranchRecord, ...]) -> bool:
        """Whether it is recorded now and was not before."""
        request = decision(DECISIONS + b"%d" % number, _encode(branches))
        return succeeded(await self._transact(request))

    async def count(self) -> int:
        request = written(1, DECISIONS) + written(2, DECISIONS_END) + numbered(9, 1)  # count_only
        return fields(await self._range(request)).get(4, 0)


def decision(key: bytes, value: bytes) -> bytes:
    """A ``TxnRequest``."""
    open_ = _compare(_GREATER, SESSION)
    new = _compare(_EQUAL, key)
    put = written(2, written(1, key) + written(2, value))
    read = written(1, written(1, key))
    return written(1, open_) + written(1, new) + written(2, put) + written(3, read)


def _compare(how: int, key: bytes) -> bytes:
    """Of a key's creation with revision 0, which is that of a key that is not there."""
    return numbered(1, how) + numbered(2, _CREATE_REVISION) + written(3, key) + numbered(5, 0)


def succeeded(response: bytes) -> bool:
    """Of a ``TxnResponse``."""
    return bool(fields(response).get(2, 0))


def fields(message: bytes) -> dict[int, int]:
    """Its numbers by field; what else is in it is skipped."""
    found, at = {}, 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at)
        if tag & 7 == 2:
            at += value
        else:
            found[tag >> 3] = value
    return found


def first(message: bytes) -> bytes:
    """The message in field 1, if that comes first."""
    size, at = _varint(message, 1)
    return message[at : at + size]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _varied(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def written(field: int, data: bytes) -> bytes:
    """A field with bytes, text or a message."""
    return _varied(field << 3 | 2) + _varied(len(data)) + data


def numbered(field: int, value: int) -> bytes:
    """A field with a number."""
    return _varied(field << 3) + _varied(value)


async def _leader(addresses: list[str]) -> str:
    """Which of them leads, once one does: its own id is the leader's."""
    end = time.monotonic() + READY_S
    while True:
        for address in addresses:
            async with grpc.aio.insecure_channel(address) as channel:
                with contextlib.suppress(grpc.RpcError):
                    status = await channel.unary_unary("/etcdserverpb.Maintenance/Status")(b"", timeout=1.0)
                    leader, own = fields(status).get(4), fields(first(status)).get(2)
                    if leader and leader == own:
                        return address
        if time.monotonic() > end:
            raise TimeoutError(f"no etcd leads within {READY_S:g} s")
        await asyncio.sleep(0.1)
