"""The same garbage as in ``tests/coordinator/wire``, at the port of a real ``undoubt node``.

Broken if bytes from the network could end a node, disturb its clients, or fill its log with tracebacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from random import Random

import msgspec
import pytest

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.wire.attacks import attack, resealed
from tests.coordinator.wire.support import ends
from tests.prove.nodes import Nodes
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.cluster.messages import (
    BackupCall,
    SnapshotCall,
    StatusCall,
)
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision
from undoubt.coordinator.raft import Heartbeat, PreVote
from undoubt.coordinator.raft import encode as encode_message
from undoubt.coordinator.rpc.envelope import (
    Request,
    encode,
)
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import VERSIONS, PeerIdentity, PeerRole
from undoubt.coordinator.wire.connection import header
from undoubt.coordinator.wire.handshake import HANDSHAKE_VERSION, hello
from undoubt.coordinator.wire.tls import tls_of
from undoubt.participants.contract import Decision

ATTACKS = 120
BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))
REQUESTS = [
    encode([Request(1, calls.InfoCall()), Request(2, calls.OpenSessionCall("name", 10.0))]),
    encode([Request(3, calls.TransactionsCall(10, None)), Request(4, StatusCall())]),
    encode([Request(5, SnapshotCall()), Request(6, BackupCall(0)), Request(7, BackupCall(2**40))]),
]


@pytest.mark.parametrize("tls", [False, True])
async def test_a_node_outlives_what_arrives_at_its_port(tls: bool, tmp_path: Path) -> None:
    """In both roles, before and after the handshake. A client goes on deciding all the while."""
    nodes = Nodes(tmp_path, 1, tls=tls)
    await nodes.begin()
    await nodes.start(1)
    try:
        await nodes.leader()
        await _attacked(nodes, Random(f"tls {tls}"))
    finally:
        await nodes.close()


async def _attacked(nodes: Nodes, random: Random) -> None:
    settings = LedgerSettings(url=f"raft://{nodes.url}", request_timeout_s=30.0)
    if nodes.tls:
        certs = nodes.folder / "certs"
        files = {
            f"tls_{key}": str(certs / f"client-operator.{end}")
            for key, end in (("cert", "crt"), ("key", "key"))
        }
        settings = msgspec.structs.replace(settings, tls_ca=str(certs / "ca.crt"), **files)
    ledger = Signing(await ClusterLedger.open(settings))
    session = await ledger.open_session("honest", 600.0)
    cluster = (await nodes.run(0, "cluster", "status"))["cluster"]
    process, log, sure = nodes.running[1], nodes.logs[1], 0
    try:
        for seq in range(1, ATTACKS + 1):
            data, known = _data(random, cluster)
            await _send(nodes, settings, data, bare=nodes.tls and random.random() < 0.3)
            sure += known
            assert await ledger.decide(session.txid(seq), Decision.COMMIT, BRANCHES) is Decision.COMMIT
            assert process.returncode is None
        records = await ledger.records([session.txid(seq) for seq in range(1, ATTACKS + 1)])
        assert set(records.values()) == {RecordedDecision.COMMIT}
    finally:
        await ledger.close()
    lines = [line for line in log if "closing the connection" in line]
    assert sure <= len(lines) <= ATTACKS
    assert not [line for line in log if "Traceback" in line or " ERROR " in line]


def _data(random: Random, cluster: str) -> tuple[list[bytes], bool]:
    """What to send, and whether it is sure to be refused with a line."""
    peer = PeerIdentity(PeerRole.NODE, cluster, 9, disk="somebody", address="127.0.0.1:1")
    client = PeerIdentity(PeerRole.CLIENT, cluster, name="somebody")
    messages = [encode_message(Heartbeat(1, 9, 0, 0, 0)), encode_message(PreVote(1, 9, 1, 0, 0))]
    me, honest, version = random.choice(
        [
            (None, [hello(client, VERSIONS, 1), hello(peer, VERSIONS, 1)], HANDSHAKE_VERSION),
            (client, REQUESTS, VERSIONS.highest),
            (peer, messages, VERSIONS.highest),
        ]
    )
    sealed = random.random() < 0.25 and me is not peer
    data = [(resealed if sealed else attack)(random, honest, version)]
    if me is not None:
        greeting = hello(me, VERSIONS, 1)
        data.insert(0, header(greeting, HANDSHAKE_VERSION) + greeting)
    return data, not sealed


async def _send(nodes: Nodes, settings: LedgerSettings, data: list[bytes], *, bare: bool) -> None:
    """``bare``: without TLS, where the port speaks it."""
    context: ssl.SSLContext | None = None
    if settings.wire.tls is not None and not bare:
        context = tls_of(settings.wire.tls).dialing
    host, port = nodes.addresses[1].split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    for each in data:
        writer.write(each)
    with contextlib.suppress(OSError):  # it may have ended already
        if context is None:
            writer.write_eof()
        else:
            await writer.drain()
            writer.close()
    await ends(reader, writer)
