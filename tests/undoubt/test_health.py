"""What a node says of itself over HTTP, and the command that asks it, or a sidecar."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.coordinator.node.processes import Processes
from tests.docs.pages import ROOT
from tests.ports import free_ports
from tests.undoubt.cli.harness import undoubt
from undoubt.coordinator.ledger.cluster.status import survey

PAGE = ROOT / "docs/monitoring.md"


@contextlib.asynccontextmanager
async def client_of(port: int) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client


@pytest.fixture
def port() -> int:
    [free] = free_ports(1)
    return free


@pytest.fixture
async def nodes(tmp_path: Path, port: int) -> AsyncIterator[Processes]:
    """Two, of which the first serves its health at ``port``. None is started."""
    made = Processes(tmp_path, count=2)
    made.config(1).write_text(made.config(1).read_text() + f'health = "127.0.0.1:{port}"\n')
    try:
        yield made
    finally:
        await made.kill()


async def test_a_node_is_ready_while_it_knows_a_leader(nodes: Processes, port: int) -> None:
    """Broken if a rolling restart goes on to the next node while this one cannot take part yet."""
    await nodes.start(1)
    command = ("health", "node", "--config", str(nodes.config(1)))
    async with client_of(port) as client:
        assert (await client.get("/livez")).json() == {"ok": True}
        refused = await client.get("/readyz")
        assert refused.status_code == 503
        assert refused.json()["checks"][0]["name"] == "leader"
        assert (await client.get("/leader")).status_code == 503
        assert undoubt(*command).status == 0
        ran = undoubt(*command, "--ready")
        assert (ran.status, "no leader is known" in ran.err) == (4, True)
        await nodes.start(2)
        while (await client.get("/readyz")).status_code != 200:
            pass
        assert undoubt(*command, "--ready", "-o", "json").json == {"ok": True}
        leading = next(seen.status for seen in (await survey(nodes.settings)).nodes if seen.status)
        while (answer := await client.get("/leader")).status_code != (200 if leading.leader == 1 else 503):
            pass
        assert answer.json() == {"leads": leading.leader == 1}
        assert (await client.get("/secret")).status_code == 404
        assert (await client.post("/livez")).status_code == 405
        assert (await client.head("/livez")).text == ""


async def test_the_metrics_of_a_node_are_on_the_page(nodes: Processes, port: int) -> None:
    """Broken if a metric of nodes is named in no document, or the page names one that does not exist."""
    await nodes.start(1, 2)
    async with client_of(port) as client:
        text = (await client.get("/metrics")).text
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE undoubt_node_")}
    named = {
        line.split("`")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `undoubt_node_")
    }
    assert shown == named
    assert "undoubt_node_disk_full 0.0" in text


def test_a_node_without_an_address_cannot_be_asked(tmp_path: Path) -> None:
    """Broken if a probe that is set up wrongly says that the node lives."""
    config = tmp_path / "undoubt.toml"
    for text in ("", 'health = "nowhere"'):
        config.write_text(f"[node]\n{text}\n")
        assert undoubt("health", "node", "--config", str(config)).status == 2
    config.write_text('[node]\nhealth = "0.0.0.0:1"\n')
    assert undoubt("health", "node", "--config", str(config)).status == 4


def test_an_address_that_is_none_ends_the_node(tmp_path: Path) -> None:
    """Broken if a node runs whose probes all fail."""
    made = Processes(tmp_path, 'health = "nowhere"\n', count=1)
    ran = undoubt("node", "--config", str(made.config(1)))
    assert (ran.status, "node.health must be host:port" in ran.err) == (2, True)


@pytest.mark.parametrize("where", ["unix", "tcp"])
def test_a_sidecar_that_does_not_serve_is_not_alive(tmp_path: Path, port: int, where: str) -> None:
    """Broken if a dead sidecar counts as alive."""
    config = tmp_path / "undoubt.toml"
    sha = "0" * 64
    places = {
        "unix": 'socket = "run/http.sock"',
        "tcp": f'socket = ""\nlisten = "127.0.0.1:{port}"\n[[sidecar.tokens]]\nname = "a"\nsha256 = "{sha}"\n'
        'participants = ["*"]',
    }
    config.write_text(f"[sidecar]\n{places[where]}\n")
    assert undoubt("health", "sidecar", "--config", str(config)).status == 4
