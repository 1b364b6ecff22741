"""What a relay tells Prometheus."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from tests.ports import free_ports
from tests.undoubt.cli.harness import COMMAND, environment, undoubt
from tests.undoubt.relay.conftest import Shop
from tests.undoubt.relay.test_command import RECEIVER, RELAY
from undoubt.metrics import Metrics
from undoubt.participants.outbox import Message
from undoubt.relay import FunctionSink, Relay
from undoubt.relay import relay as module

PATIENCE_S = 60


class Told:
    """The metrics of the relays of ``orders`` in this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.meter = Metrics(self.registry).relay("orders")

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"undoubt_relay_{name}", {"participant": "orders", **labels})

    async def until(self, wanted: float, name: str, **labels: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self(name, **labels) != wanted:
                await asyncio.sleep(0.01)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    return Told()


async def refuse(message: Message) -> None:
    if message.key != "good":
        raise ValueError("not today")


async def test_deliveries_and_what_is_left(shop: Shop, told: Told) -> None:
    """An operator would not see that a receiver refuses messages, or that they pile up."""
    await shop.publish("1", "2", topic="placed", key="good")
    await shop.publish("3", topic="placed", key="bad")
    await shop.admin.execute(
        "update undoubt.undoubt_outbox set published_at = published_at - interval '1 hour' where key = 'bad'"
    )
    relay = Relay(shop.outbox(), FunctionSink(refuse), metrics=told.meter)
    running = asyncio.create_task(relay.run())
    await told.until(2.0, "deliveries_total", topic="placed", result="acknowledged")
    await told.until(1.0, "outbox_messages")
    await told.until(1.0, "blocked_keys")
    assert (told("deliveries_total", topic="placed", result="failed") or 0) >= 1
    assert told("delivery_seconds_count", topic="placed") == 2
    assert 3600 <= (told("outbox_oldest_age_seconds") or 0) < 7200
    # An operator gives the message up.
    await shop.admin.execute("delete from undoubt.undoubt_outbox")
    await told.until(0.0, "outbox_messages")
    await told.until(0.0, "blocked_keys")
    assert told("outbox_oldest_age_seconds") == 0
    relay.stop()
    await running


async def test_the_age_grows_while_the_database_is_away(shop: Shop, told: Told) -> None:
    """The alert would never fire when it is needed most."""
    await shop.publish("1", key="bad")
    relay = Relay(shop.outbox(), FunctionSink(refuse), metrics=told.meter)
    running = asyncio.create_task(relay.run())
    await told.until(1.0, "outbox_messages")
    age = told("outbox_oldest_age_seconds")
    await shop.break_sessions()
    async with asyncio.timeout(PATIENCE_S):
        while not told("outbox_failures_total"):
            await asyncio.sleep(0.01)
    assert age is not None
    assert (told("outbox_oldest_age_seconds") or 0) > age
    relay.stop()
    await running


async def test_a_relay_of_two_topics_counts_its_own(shop: Shop, told: Told) -> None:
    await shop.publish("1", topic="placed")
    await shop.publish("2", topic="sent")
    relay = Relay(shop.outbox(), FunctionSink(refuse), topics=["placed"], metrics=told.meter)
    await relay.run(once=True)
    assert told("outbox_messages") == 1
    assert told("deliveries_total", topic="sent", result="failed") is None


async def test_the_command_serves_them(shop: Shop) -> None:
    (shop.folder / "receiver.py").write_text(RECEIVER)
    [port] = free_ports(1)
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *RELAY,
        "--metrics",
        f"127.0.0.1:{port}",
        cwd=shop.folder,
        env=environment(),
        stderr=subprocess.PIPE,
    )
    try:
        await shop.publish("1", topic="placed")
        async with asyncio.timeout(PATIENCE_S):
            while not (shop.folder / "got").exists():
                await asyncio.sleep(0.01)
        async with httpx.AsyncClient() as client, asyncio.timeout(PATIENCE_S):
            labels = 'participant="orders",result="acknowledged",topic="placed"'
            sample = f"undoubt_relay_deliveries_total{{{labels}}} 1.0"
            while sample not in (await client.get(f"http://127.0.0.1:{port}/metrics")).text:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, b"delivered: 1, failed: 0" in err) == (0, True)


@pytest.mark.parametrize("where", ["", "9187", "::1:9187", "127.0.0.1:99999"])
async def test_where_it_cannot_listen(shop: Shop, where: str, tmp_path: Path) -> None:
    """The relay would run without the metrics that its operator relies on."""
    done = await asyncio.to_thread(undoubt, *RELAY, "--once", "--metrics", where, cwd=tmp_path)
    assert (done.status, "--metrics" in done.err) == (2, True)
