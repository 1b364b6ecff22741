"""Where the console is served: by a sidecar, beside its API, and by a node, at a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import pytest_asyncio

from tests.ports import free_ports
from tests.undoubt.cli.harness import undoubt
from tests.undoubt.console.reading import client, reading
from tests.undoubt.console.rig import tokens
from tests.undoubt.sidecar.conftest import shops
from tests.undoubt.sidecar.stage import Stage, prepare, staged, token
from tests.undoubt.sidecar.test_tls import Authority
from undoubt.config import Settings, load
from undoubt.coordinator.ledger import open_ledger
from undoubt.serve import bootstrap
from undoubt.serve.node import node

__all__ = ["shops"]


@pytest.fixture(scope="module")
def stage(shops: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("console"), shops) as made:
        yield made


def base(stage: Stage) -> str:
    return f"http://127.0.0.1:{stage.port}"


async def test_a_sidecar_shows_what_the_command_line_says(stage: Stage) -> None:
    """Broken if an operator sees two different truths."""
    work = stage.tcp().begin()
    work.run("update account set balance = balance where id = 1")
    branch = work.announce("payments")
    prepare(stage.databases["payments"], branch, "update account set balance = balance where id = 1")
    async with reading(base(stage)) as seen:
        await seen.until(lambda: seen.parts.get("participant payments", {}).get("branches"))
        [shown] = seen.parts["participant payments"]["branches"]
        [said] = undoubt("indoubt", "list", "--config", str(stage.config), "-o", "json").json["branches"]
        assert {key: value for key, value in said.items() if key != "age_s"} == {
            key: value for key, value in shown.items() if key not in ("in_doubt", "since")
        }
        running = seen.parts["running"]["running"]
        assert [one["id"] for one in running] == [work.id]
        assert work.commit().status_code == 200
        await seen.until(lambda: seen.rows.get(work.id, {}).get("finished"))
        await seen.until(lambda: not seen.parts["running"]["running"])
        await seen.until(lambda: any(slot["committed"] for slot in seen.parts["hour"]["slots"]))
    [told] = undoubt("tx", "list", "--config", str(stage.config), "-o", "json").json
    assert (told["txid"], told["decision"], told["finished"]) == (work.id, "commit", True)
    async with client(base(stage)) as http:
        one = (await http.get("/v1/console/transaction", params={"id": work.id})).json()
    assert [each["step"] for each in one["moments"]][:2] == ["begin", "branch"]
    assert {each["branch"] for each in one["moments"] if each["step"] == "after_prepare"} == {1, 2}
    assert one["transaction"]["txid"] == work.id


async def test_an_abort_without_a_record_is_shown_with_its_reason(stage: Stage) -> None:
    """Broken if a rolled back transaction vanishes from the page, since the ledger has no record of it."""
    work = stage.tcp().begin()
    work.run("update account set balance = balance where id = 2")
    async with reading(base(stage)) as seen:
        assert work.rollback().status_code == 200
        await seen.until(lambda: work.id in seen.rows)
        assert seen.rows[work.id]["outcome"] == "aborted"
        assert seen.rows[work.id]["reason"] != ""


async def test_what_did_not_prepare_is_told_as_that(stage: Stage) -> None:
    """Broken if the picture of an aborted transaction cannot tell which branch refused, and which was rolled
    back after its vote."""
    with psycopg.connect(stage.databases["orders"], autocommit=True) as connection:
        connection.execute("create table bill (id int unique deferrable initially deferred)")
        connection.execute("insert into bill values (1)")
        connection.execute("grant all on bill to public")
    work = stage.tcp().begin()
    work.run("insert into bill values (1)")
    branch = work.announce("payments")
    prepare(stage.databases["payments"], branch, "update account set balance = balance where id = 3")
    assert work.commit().status_code == 409
    async with client(base(stage)) as http:
        one = (await http.get("/v1/console/transaction", params={"id": work.id})).json()
    passed = {(each["step"], each["branch"]) for each in one["moments"]}
    assert ("voted_abort", 1) in passed
    assert ("voted_abort", 2) not in passed
    assert {("after_prepare", 2), ("before_abort", 2), ("after_abort", 2)} <= passed


async def test_the_page_is_beside_the_api(stage: Stage) -> None:
    async with client(base(stage), None) as http:
        assert (await http.get("/")).headers["content-type"].startswith("text/html")
        assert (await http.get("/livez")).status_code == 200
        assert (await http.get("/v1/transactions")).status_code == 401


async def test_an_open_page_does_not_hold_up_the_end(shops: dict[str, str], tmp_path: Path) -> None:
    """Broken if a sidecar cannot be stopped while somebody watches it."""
    with staged(tmp_path, shops) as own:
        async with reading(f"http://127.0.0.1:{own.port}") as seen:
            await seen.until(lambda: seen.beats)
            assert own.process is not None
            own.process.terminate()
            await seen.to_the_end()
        assert own.process.wait(30) == 0


@contextlib.asynccontextmanager
async def running_node(
    shops: dict[str, str], folder: Path, **more: object
) -> AsyncIterator[tuple[Settings, int]]:
    """One node with a console; the value has the port of that."""
    port, console = free_ports(2)
    settings = load(
        {
            "ledger": {"url": f"raft://127.0.0.1:{port}"},
            "node": {"number": 1, "data": str(folder / "node"), "console": True},
            "console": {"listen": f"127.0.0.1:{console}", "tokens": tokens(), **more},
            "participants": {name: {"dsn": dsn} for name, dsn in shops.items()},
        }
    )
    bootstrap.init(settings)
    async with node(settings):
        await _serves("127.0.0.1", console)
        yield settings, console


@pytest_asyncio.fixture
async def one_node(shops: dict[str, str], tmp_path: Path) -> AsyncIterator[tuple[Settings, str]]:
    async with running_node(shops, tmp_path) as (settings, port):
        yield settings, f"http://127.0.0.1:{port}"


async def _serves(host: str, port: int) -> None:
    """Wait until the console is served: the node is ready before it."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def test_a_node_serves_it_at_a_port_of_its_own(one_node: tuple[Settings, str]) -> None:
    """Broken if a cluster without a sidecar has no console."""
    settings, where = one_node
    ledger = await open_ledger(settings.ledger)
    try:
        session = await ledger.open_session("shop", 60.0)
    finally:
        await ledger.close()
    async with reading(where) as seen:
        await seen.until(lambda: "hello" in seen.parts)
        assert seen.parts["hello"]["place"] == "node 1"
        await seen.until(lambda: seen.parts.get("sessions", {}).get("sessions"))
        assert [one["name"] for one in seen.parts["sessions"]["sessions"]] == [session.name]
        await seen.until(lambda: seen.parts.get("cluster", {}).get("leader") == 1)
        await seen.until(lambda: seen.parts.get("running"))
        assert not seen.parts["running"]["kept"]
    async with client(where, None) as http:
        assert (await http.get("/v1/transactions")).status_code == 404
    async with client(where, None, Host="evil.example") as http:
        assert "console.hosts lists the names" in (await http.get("/")).text, "the setting of a node"


async def test_a_node_serves_it_by_tls(shops: dict[str, str], tmp_path: Path) -> None:
    """Broken if a console that other machines reach is served without the certificate of its settings."""
    ours = Authority(tmp_path, "ours")
    cert, key = ours.issue("node")
    headers = {"Authorization": f"Bearer {token('watcher')}"}
    more = {"tls_cert": cert, "tls_key": key, "hosts": ["localhost"]}
    async with running_node(shops, tmp_path, **more) as (_, port):
        secure = ssl.create_default_context(cafile=str(ours.path))
        async with httpx.AsyncClient(verify=secure, base_url=f"https://localhost:{port}") as http:
            assert (await http.get("/")).headers["content-type"].startswith("text/html")
            assert (await http.get("/v1/console/me")).status_code == 401
            told = await http.get("/v1/console/me", headers=headers)
            assert told.json() == {"client": "watcher", "roles": ["observe"], "operates": False}
        async with httpx.AsyncClient(base_url=f"http://localhost:{port}") as http:
            with pytest.raises(httpx.TransportError):
                await http.get("/")
