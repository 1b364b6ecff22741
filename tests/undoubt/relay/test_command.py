"""``undoubt relay`` as its users run it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from pathlib import Path

from tests.undoubt.cli.harness import COMMAND, environment, undoubt
from tests.undoubt.relay.conftest import Shop

RECEIVER = """
import time

def receive(message):
    with open("got", "a") as file:
        file.write(f"{message.key} {message.payload.decode()} {message.dedupe_id}\\n")

def refuse(message):
    raise ValueError("not today")

def hang(message):
    receive(message)
    time.sleep(10_000)
"""
RELAY = ("relay", "--participant", "orders", "--to", "receiver:receive")


async def ran(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    done = await asyncio.to_thread(undoubt, *arguments, cwd=cwd)
    return done.status, done.out, done.err


async def test_once(shop: Shop) -> None:
    (shop.folder / "receiver.py").write_text(RECEIVER)
    ids = await shop.publish("1", "2", key="k")
    refused = ("relay", "--participant", "orders", "--to", "receiver:refuse", "--once")
    status, _, err = await ran(*refused, cwd=shop.folder)
    assert status == 1
    assert "not today" in err
    assert "1 message was not delivered" in err
    status, out, _ = await ran(*RELAY, "--once", "-o", "json", cwd=shop.folder)
    assert (status, out.split()) == (0, ["{", '"delivered":', "2,", '"failed":', "0", "}"])
    assert (shop.folder / "got").read_text() == f"k 1 {ids[0]}\nk 2 {ids[1]}\n"
    assert await shop.left() == []


async def test_sigterm_ends_it(shop: Shop) -> None:
    """Broken if an orderly restart leaves what was acknowledged in the outbox."""
    (shop.folder / "receiver.py").write_text(RECEIVER)
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *RELAY, cwd=shop.folder, env=environment(), stderr=subprocess.PIPE
    )
    try:
        await shop.publish("1")
        async with asyncio.timeout(60):
            while not (shop.folder / "got").exists():
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    assert b"delivered: 1, failed: 0" in err
    assert await shop.left() == []


async def test_sigterm_ends_it_while_its_function_hangs(shop: Shop) -> None:
    """Broken if each restart of such a relay ends with a SIGKILL."""
    (shop.folder / "receiver.py").write_text(RECEIVER)
    await shop.publish("1")
    hanging = ("relay", "--participant", "orders", "--to", "receiver:hang", "--timeout", "100ms")
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *hanging, cwd=shop.folder, env=environment(), stderr=subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            while b"was not acknowledged within 0.1 s" not in await process.stderr.readline():
                pass
            process.send_signal(signal.SIGTERM)
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    assert b"delivered: 0, failed: " in err
    assert (shop.folder / "got").read_text().count("\n") == 1
    assert len(await shop.left()) == 1


async def test_mistakes_are_told(shop: Shop) -> None:
    once = ("relay", "--once", "--to")
    status, _, err = await ran(*once, "receiver:none", "--participant", "orders", cwd=shop.folder)
    assert (status, "names no function" in err) == (2, True)
    status, _, err = await ran(*once, "json:dumps", "--participant", "nobody", cwd=shop.folder)
    assert (status, "nobody" in err) == (3, True)
    await shop.admin.execute("drop schema undoubt cascade")
    status, _, err = await ran(*once, "json:dumps", "--participant", "orders", cwd=shop.folder)
    assert (status, "undoubt participants migrate orders" in err) == (1, True)
