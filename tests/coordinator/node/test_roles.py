"""What a client may ask of a node is what its certificate says. Broken if who may only look could decide, or
if an application's certificate could change the members or take a backup, which holds the ledger's secret."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.node.cluster import CLUSTER, Cluster
from undoubt.coordinator.errors import ClusterRefused, LedgerError, NotPermitted
from undoubt.coordinator.ledger.calls import ALL_CALLS
from undoubt.coordinator.ledger.cluster import admin, messages
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.cluster.messages import MemberChange
from undoubt.coordinator.ledger.contract import Act, BranchRecord, RecordedDecision
from undoubt.coordinator.rpc.calls import kinds
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import Right, TlsSettings, WireSettings
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId
from undoubt.serve.certs import Folder

BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))
ROLES = {
    "dashboard": Right.OBSERVE,
    "shop": Right.TRANSACT,
    "admin": Right.OPERATE,
    "former": None,
    "later": Right.NOTHING,
}
"""Clients, by their name; *former* has a certificate as version 0.1.0 makes them, *later* a role that nobody
knows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made = Folder(tmp_path_factory.mktemp("certs"), CLUSTER)
    made.issue({1: []}, [])
    for name, right in ROLES.items():
        made.issue({}, [name], right)
    return made


@pytest.fixture
async def cluster(tmp_path: Path, folder: Folder) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path, 1)
    made.wire = WireSettings(tls=files(folder, "node-1"))
    await made.start()
    try:
        await made.leader()
        yield made
    finally:
        await made.stop()


def files(folder: Folder, stem: str) -> TlsSettings:
    place = folder.place
    return TlsSettings(*(str(place / name) for name in ("ca.crt", f"{stem}.crt", f"{stem}.key")))


def settings_of(cluster: Cluster, folder: Folder, stem: str) -> LedgerSettings:
    tls = files(folder, stem)
    return msgspec.structs.replace(cluster.settings, tls_ca=tls.ca, tls_cert=tls.cert, tls_key=tls.key)


@contextlib.asynccontextmanager
async def opened(cluster: Cluster, folder: Folder, stem: str) -> AsyncIterator[Signing]:
    ledger = await ClusterLedger.open(settings_of(cluster, folder, stem))
    try:
        yield Signing(ledger)
    finally:
        await ledger.close()


def test_every_call_needs_a_role() -> None:
    """Broken if a call that is added may be asked by nobody, or ends the request of whoever asks it."""
    declared = {kind: kind.right for kind in (*kinds(ALL_CALLS), *kinds(messages.NodeCall))}
    assert len(declared) >= 30
    assert {right for right in Right if right} == set(declared.values())
    changes = {kind.__name__ for kind, right in declared.items() if right is Right.OBSERVE}
    assert changes.isdisjoint(
        {"DecideCall", "PrecommitCall", "FinishCall", "OpenSessionCall", "AcceptorCall"}
    )


async def test_who_observes_decides_nothing(cluster: Cluster, folder: Folder) -> None:
    async with (
        opened(cluster, folder, "client-shop") as shop,
        opened(cluster, folder, "client-dashboard") as sees,
    ):
        session = await shop.open_session("shop", 60.0)
        txid = session.txid(1)
        assert await shop.decide(txid, Decision.COMMIT, BRANCHES) is Decision.COMMIT
        assert (await sees.records([txid]))[txid] is RecordedDecision.COMMIT
        assert [each.txid for each in await sees.unfinished()] == [txid]
        assert (await sees.info()).unfinished == 1
        refused = [
            sees.open_session("dashboard", 60.0),
            sees.keep_alive(session, 1),
            sees.close_session(session),
            sees.decide(session.txid(2), Decision.ABORT, BRANCHES),
            sees.finish([txid]),
            sees.doom(session.txid(3), "cause"),
            sees.agent_keys([session.txid(3)]),
            sees.record_act(Act("f" * 16, "verb", "subject", 0.0, "me")),
        ]
        for asked in refused:
            with pytest.raises(NotPermitted, match=r"needs a certificate with the role \w+"):
                await asked
        assert await shop.decide(session.txid(2), Decision.COMMIT, BRANCHES) is Decision.COMMIT
        assert len(await sees.unfinished()) == 2


@pytest.mark.parametrize("stem", ["client-shop", "client-dashboard"])
async def test_only_operators_operate(stem: str, cluster: Cluster, folder: Folder) -> None:
    """Members, leaders, snapshots, backups."""
    settings = settings_of(cluster, folder, stem)
    with pytest.raises(NotPermitted, match="role operate"):
        await admin.change_members(settings, [MemberChange("add", 2, "127.0.0.1:1", "disk", 3)], wait_s=0.0)
    with pytest.raises(NotPermitted, match="role operate"):
        await admin.transfer(settings, 1, wait_s=0.0)
    with pytest.raises(NotPermitted, match="role operate"):
        await admin.snapshot(settings, cluster.addresses[1])
    with pytest.raises(NotPermitted, match="role operate"):
        await admin.image(settings)
    assert cluster.nodes[1].replica.replicated.highest == 1


@pytest.mark.parametrize("stem", ["client-admin", "client-former", "node-1"])
async def test_who_may_do_all(stem: str, cluster: Cluster, folder: Folder) -> None:
    """An operator, a certificate of version 0.1.0, a node."""
    async with opened(cluster, folder, stem) as ledger:
        session = await ledger.open_session("all", 60.0)
        assert await ledger.decide(session.txid(1), Decision.COMMIT, BRANCHES) is Decision.COMMIT
    settings = settings_of(cluster, folder, stem)
    assert (await admin.image(settings))[2]
    with pytest.raises(ClusterRefused, match="no other voter"):
        await admin.transfer(settings, wait_s=0.0)


async def test_a_role_that_is_not_known_may_do_nothing(cluster: Cluster, folder: Folder) -> None:
    """Else what a later version allows less would be allowed all here."""
    with pytest.raises(NotPermitted):
        async with opened(cluster, folder, "client-later") as ledger:
            await ledger.records([TxId(1, "0" * 16, 1)])


async def test_a_refusal_has_done_nothing_and_is_final(cluster: Cluster, folder: Folder) -> None:
    """It is no ``LedgerUnavailable``: nobody has to wonder whether it was recorded."""
    assert issubclass(NotPermitted, LedgerError)
    async with opened(cluster, folder, "client-dashboard") as sees:
        before = cluster.nodes[1].replica.raft.last_index
        with pytest.raises(NotPermitted):
            await sees.open_session("dashboard", 60.0)
        assert cluster.nodes[1].replica.raft.last_index == before
