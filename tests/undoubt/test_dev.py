"""``undoubt dev``: people kill things and watch, and nothing of it may stay on their machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess

import httpx
import pytest

from tests.docs.pages import ROOT, blocks
from tests.prove.dev import KINDS, Dev, dev, listens, until
from tests.undoubt.cli.harness import undoubt
from undoubt.embedded.places import children
from undoubt.participants.errors import UndoubtError
from undoubt.serve.local.keeper import UNREPORTED_FAILURES_MAX, in_words, keep
from undoubt.serve.local.ports import HELD, reserved_ports

KEYS = {"sidecar", "console", "token", "nodes", "participants", "config"}


async def all_answer(one: Dev) -> bool:
    return all([await one.probe(what) for what in KINDS])


async def test_what_is_killed_is_started_again_and_nothing_stays() -> None:
    """Everything at once, the process that cleans up as well."""
    async with dev() as one:
        await one.ready()
        assert set(one.told) == KEYS
        before = set(children(one.process.pid))
        assert len(one.victims()) == len(KINDS)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until("everything is new", lambda: _renewed(one, before))
        await until("everything answers", lambda: all_answer(one))
        for what in ("server orders", "server payments", "node 1", "node 2", "node 3", "sidecar", "sweeper"):
            assert f"{what} (process " in one.errors
            assert f"{what} serves again" in one.errors
        one.process.send_signal(signal.SIGTERM)
        assert await one.process.wait() == 0, one.errors
        assert "Traceback" not in one.errors
        assert one.left() == []


async def _renewed(one: Dev, before: set[int]) -> bool:
    now = set(children(one.process.pid))
    return len(now) == len(before) and now.isdisjoint(before)


async def test_a_transaction_runs_through_it() -> None:
    """With what the line of JSON says, and nothing else."""
    async with dev() as one:
        await one.ready()
        headers = {"Authorization": f"Bearer {one.told['token']}"}
        async with httpx.AsyncClient(base_url=one.told["sidecar"], headers=headers, timeout=60) as client:
            begun = (await client.post("/v1/transactions", json={})).json()
            path = f"/v1/transactions/{begun['id']}"
            for participant, sql in (
                ("orders", "insert into orders (item) values ('a lamp')"),
                ("payments", "update accounts set balance = balance - 15 where name = 'ada'"),
            ):
                answer = await client.post(
                    f"{path}/statements", json={"participant": participant, "sql": sql}
                )
                assert answer.status_code == 200, answer.text
            ended = await client.post(f"{path}/commit")
            assert ended.json()["outcome"] == "committed"
            page = await client.get(one.told["console"])
            assert page.headers["content-type"].startswith("text/html")
            me = await client.get("/v1/console/me")
            assert me.json()["operates"], "the token that it prints opens its console, and may act there"
        shown = await asyncio.to_thread(
            undoubt, "tx", "show", begun["id"], "--config", one.told["config"], "-o", "json"
        )
        assert shown.status == 0, shown.err
        assert shown.json["decision"] == "commit"
        looked = await asyncio.to_thread(undoubt, "doctor", "--config", one.told["config"], "-o", "json")
        wrong = [each for each in looked.json["findings"] if each["severity"] != "ok"]
        assert wrong == [], "its console would begin with problems that it has made itself"


async def test_first_success() -> None:
    """The script of the page about the sidecar, as it stands there."""
    [script] = [block.text for block in blocks("sh", ROOT / "docs/sidecar.md") if "$tx/commit" in block.text]
    async with dev() as one:
        await one.ready()
        (one.folder / "dev.json").write_text(json.dumps(one.told))
        ran = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-euc", script],
            cwd=one.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout.splitlines()[-1])["outcome"] == "committed", ran.stdout


@pytest.mark.parametrize("started", [True, False], ids=["serving", "starting"])
async def test_killed_with_9_it_leaves_nothing(started: bool) -> None:
    """Its children notice; the sweeper removes what nobody else can."""
    async with dev() as one:
        await (one.ready() if started else one.starts_a_server())
        assert await one.killed_whole() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_interrupted_while_it_starts_it_leaves_nothing(number: signal.Signals) -> None:
    """Also where servers run that nobody has been told of yet."""
    async with dev() as one:
        await one.starts_a_server()
        one.process.send_signal(number)
        assert await one.process.wait() == 0, one.errors
        assert one.left() == []


@pytest.mark.skipif(not HELD, reason="only Linux reserves ports")
def test_a_reserved_port_is_given_to_nobody_else() -> None:
    """In between a death and the new start, another program could otherwise take it."""
    with reserved_ports(3) as ports:
        assert len(set(ports)) == 3
        assert not any(listens(port) for port in ports)
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", ports[0]))
        with socket.create_server(("127.0.0.1", ports[0])):
            assert listens(ports[0])


class Weak:
    """Ends at once, and fails to start so many times."""

    name = "weak"
    pid = 7

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.starts = 0
        self.alive = asyncio.Event()

    async def start(self) -> None:
        self.starts += 1
        if self.starts <= self.failures:
            raise UndoubtError("no room")
        self.alive.set()

    async def ended(self) -> int:
        if self.starts:
            await asyncio.Event().wait()
        return -signal.SIGSEGV


async def test_a_start_that_fails_is_tried_again() -> None:
    """A server does not start while sessions of its former self end; one that never starts is told of."""
    said: list[str] = []
    weak = Weak(UNREPORTED_FAILURES_MAX + 1)
    keeping = asyncio.create_task(keep(weak, said.append, lambda: None))
    async with asyncio.timeout(10):
        await weak.alive.wait()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert weak.starts == UNREPORTED_FAILURES_MAX + 2
    assert said[:2] == ["weak (process 7) was ended by SIGSEGV: starting it again", "weak: no room"]


def test_an_end_in_words() -> None:
    """What people see when something dies."""
    assert in_words(3) == "ended with status 3"
    assert in_words(-250) == "was ended by signal 250"
