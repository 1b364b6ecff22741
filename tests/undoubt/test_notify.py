"""What services report to systemd: they serve once they say so, and they are alive while their loop turns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.coordinator.node.processes import Processes
from tests.ports import free_ports
from tests.service_manager import ServiceManager
from tests.undoubt.cli.harness import COMMAND, environment
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.serve.notify import notify, reporting, watchdog_s

USEC = "300000"


@pytest.fixture
def manager() -> Iterator[ServiceManager]:
    with ServiceManager.listening() as made:
        yield made


@contextlib.contextmanager
def service(manager: ServiceManager, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment({"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": USEC}),
        stdin=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_a_node_is_ready_once_it_answers(manager: ServiceManager, tmp_path: Path) -> None:
    """Broken if units that are started after a node find nobody, or if systemd kills a node that works."""
    one = Processes(tmp_path, count=1)
    with service(manager, "node", "--config", str(one.config(1))) as process:
        told = await asyncio.to_thread(manager.next)
        assert told[0] == "READY=1"
        assert told[1].startswith("STATUS=node 1 of cluster ")
        [seen] = (await survey(one.settings)).nodes
        assert seen.status is not None, seen.error
        for _ in range(3):
            assert await asyncio.to_thread(manager.next) == ["WATCHDOG=1"]
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(manager.until, "STOPPING=1")
        assert await asyncio.to_thread(process.wait) == 0


async def test_a_node_that_cannot_listen_is_never_ready(manager: ServiceManager, tmp_path: Path) -> None:
    """Broken if systemd takes a node for started that never served."""
    one = Processes(tmp_path, count=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", one.ports[0]))
        taken.listen()
        with service(manager, "node", "--config", str(one.config(1))) as process:
            assert await asyncio.to_thread(process.wait) == 2
    assert manager.waiting() == 0


def test_a_sidecar_is_ready_once_it_answers(manager: ServiceManager, tmp_path: Path) -> None:
    """Broken if a service that is started after its sidecar is refused by it."""
    path = manager.path.parent / "run/http.sock"
    config = tmp_path / "undoubt.toml"
    config.write_text(f'[ledger]\nurl = "sqlite:///ledger.db"\n[sidecar]\nsocket = "{path}"\n')
    with service(manager, "sidecar", "--config", str(config)) as process:
        assert manager.next() == ["READY=1", f"STATUS=serving unix:{path}"]
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://sidecar") as client:
            assert client.get("/readyz").status_code == 200
        for _ in range(3):
            assert manager.next() == ["WATCHDOG=1"]
        process.send_signal(signal.SIGTERM)
        manager.until("STOPPING=1")
        assert process.wait() == 0


async def test_a_loop_that_stands_still_gives_no_sign_of_life(
    manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if the watchdog lets a process live that serves nobody."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    async with reporting("testing"):
        reports = 0
        while reports < 2:
            await asyncio.sleep(0.01)
            reports += manager.waiting()
        time.sleep(0.3)  # ten times the watchdog's time: the loop stands still meanwhile
        assert manager.waiting() == 0
        while not manager.waiting():
            await asyncio.sleep(0.01)
    assert manager.next() == ["STOPPING=1"]


@pytest.mark.parametrize(
    ("pid", "usec", "expected"),
    [
        (None, "3000000", 3.0),
        ("own", "3000000", 3.0),
        ("1", "3000000", 0.0),
        (None, "", 0.0),
        (None, "x", 0.0),
    ],
)
def test_the_time_is_that_of_this_process(
    monkeypatch: pytest.MonkeyPatch, pid: str | None, usec: str, expected: float
) -> None:
    """Broken if a child of a service, such as a command that it runs, reports in its place."""
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert watchdog_s() == expected


@pytest.mark.timeout(20)
def test_a_service_manager_that_does_not_read_stops_nobody(
    manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a service hangs because systemd does."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    for _ in range(2000):
        notify("WATCHDOG=1")
    assert 0 < manager.waiting() < 2000


def test_without_a_service_manager_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a service cannot be started by hand, or after its service manager has gone."""
    [port] = free_ports(1)
    for address in ("", f"127.0.0.1:{port}", "/nowhere/notify"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")
