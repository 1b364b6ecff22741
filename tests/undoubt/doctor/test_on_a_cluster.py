"""``undoubt doctor`` beside a ledger of three node processes."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import msgspec
import pytest

from tests.coordinator.node.processes import processes
from tests.undoubt.cli.harness import undoubt
from undoubt.config import load
from undoubt.coordinator.ledger.cluster import status as asking
from undoubt.coordinator.ledger.cluster.messages import NodeStatus
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import Right
from undoubt.doctor import examine
from undoubt.doctor.cluster import look_at_nodes
from undoubt.participants.findings import Finding, Severity
from undoubt.serve.certs import Folder


def by_check(found: list[Finding]) -> dict[str, Finding]:
    return {one.check: one for one in found}


async def test_nodes_that_do_not_answer(tmp_path: Path) -> None:
    """Broken if nobody is told that one more failure stops every decision, or that it has happened."""
    async with processes(tmp_path) as nodes:
        settings = load({"ledger": {"url": nodes.settings.url, "request_timeout_s": 2.0}, "participants": {}})
        leader = await nodes.leader()
        found = by_check(await examine(settings, older_than_s=300.0))
        assert found["ledger"].severity is Severity.OK
        assert found["ledger_nodes"].severity is Severity.OK
        assert found["ledger_nodes"].what == f"node {leader} leads; of 3 voters 3 answer, and 1 may fail"
        first, second = (number for number in nodes.numbers if number != leader)
        await nodes.end(first, signal.SIGKILL)
        found = by_check(await examine(settings, older_than_s=300.0))
        assert found["ledger_nodes"].severity is Severity.WARNING
        assert found["ledger_nodes"].why.startswith("0 more may fail")
        assert f"127.0.0.1:{nodes.ports[first - 1]} does not answer" in found["ledger_nodes"].why
        await nodes.end(second, signal.SIGKILL)
        await nodes.end(leader, signal.SIGKILL)
        found = by_check(await examine(settings, older_than_s=300.0))
        assert found["ledger"].severity is Severity.UNREACHABLE
        assert found["ledger_nodes"].severity is Severity.UNREACHABLE
        config = tmp_path / "undoubt.toml"
        config.write_text(f'[ledger]\nurl = "{nodes.settings.url}"\nrequest_timeout_s = 2.0\n')
        ran = await asyncio.to_thread(undoubt, "doctor", cwd=tmp_path)
        assert ran.status == 4


@pytest.mark.parametrize("trouble", ["disk_full", "disk_stalled"])
async def test_the_disk_of_a_node(trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose disk takes nothing still answers. (Disks are filled and held where nodes are tested.)"""
    async with processes(tmp_path) as nodes:
        await nodes.leader()
        found = await asking.survey(nodes.settings)
        full = [
            msgspec.structs.replace(seen, status=msgspec.structs.replace(seen.status, **{trouble: True}))
            for seen in found.nodes[:1]
            if isinstance(seen.status, NodeStatus)
        ]

        async def told(_: LedgerSettings) -> asking.ClusterStatus:
            return msgspec.structs.replace(found, nodes=(*full, *found.nodes[1:]))

        monkeypatch.setattr("undoubt.doctor.cluster.survey", told)
        looked = by_check(await look_at_nodes(nodes.settings))
        assert looked["ledger_disk"].severity is Severity.PROBLEM


async def test_a_version_that_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade that was left half done. (Real nodes of two versions are tested where nodes are.)"""
    async with processes(tmp_path) as nodes:
        await nodes.leader()
        found = await asking.survey(nodes.settings)
        former = [
            msgspec.structs.replace(
                seen,
                status=msgspec.structs.replace(
                    seen.status, agreed_version=1, highest_version=1 if seen.status.node == 3 else 2
                ),
            )
            for seen in found.nodes
            if seen.status is not None
        ]

        async def told(_: LedgerSettings) -> asking.ClusterStatus:
            return msgspec.structs.replace(found, nodes=tuple(former))

        assert "ledger_version" not in by_check(await look_at_nodes(nodes.settings))
        monkeypatch.setattr("undoubt.doctor.cluster.survey", told)
        looked = by_check(await look_at_nodes(nodes.settings))
        assert looked["ledger_version"].severity is Severity.WARNING
        assert "node 3" in looked["ledger_version"].why


@pytest.mark.parametrize(
    ("stem", "right", "severity", "words"),
    [
        ("client-shop", None, Severity.WARNING, "names no role"),
        ("client-shop", Right.TRANSACT, Severity.OK, "has the role transact"),
        ("node-1", None, None, ""),
    ],
)
async def test_the_role_of_a_certificate(
    stem: str, right: Right | None, severity: Severity | None, words: str, tmp_path: Path
) -> None:
    """Broken if nobody is told that an application's certificate of version 0.1.0 lets it change the
    members."""
    folder = Folder(tmp_path / "certs", "abcdefghij")
    folder.issue({1: []}, ["shop"], right)
    place = folder.place
    settings = LedgerSettings(
        url="raft://127.0.0.1:1",
        request_timeout_s=1.0,
        tls_ca=str(place / "ca.crt"),
        tls_cert=str(place / f"{stem}.crt"),
        tls_key=str(place / f"{stem}.key"),
    )
    found = by_check(await look_at_nodes(settings)).get("ledger_role")
    assert (None if found is None else found.severity) is severity
    if found is not None:
        assert f"client shop {words}" in found.what
