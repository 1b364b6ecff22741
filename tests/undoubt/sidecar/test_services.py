"""The example of two services with a sidecar each, and what carries a transaction between them."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from examples.two_services import services
from tests.ports import free_ports
from tests.prove.processes import ROOT
from tests.undoubt.sidecar.pair import Pair
from tests.undoubt.sidecar.stage import token
from undoubt.errors import UsageError
from undoubt.integrations.httpx import (
    Propagation,
    SidecarOutcomeUnknown,
    SidecarRefused,
    joined,
    transaction,
)
from undoubt.integrations.joining import HEADER, JoinedTransaction, current, working_in
from undoubt.integrations.starlette import JoinTransaction

PAYLOAD = {"transaction": "1-0123456789abcdef.7"}


def header(payload: object = PAYLOAD) -> str:
    encoded = base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")
    return f"{encoded}.c2VhbA"


@contextmanager
def running(name: str, port: int, **environment: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "two_services" / "services.py"), name],
        env={**os.environ, "PORT": str(port), "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/")
                break
            except httpx.HTTPError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def shop(pair: Pair) -> Iterator[httpx.Client]:
    """The service of orders."""
    orders, payments = free_ports(2)
    both = {"TOKEN": token("shop")}
    with ExitStack() as stack:
        stack.enter_context(
            running(
                "payments",
                payments,
                SIDECAR=f"http://127.0.0.1:{pair.b.port}",
                DATABASE=pair.databases["payments"],
                **both,
            )
        )
        stack.enter_context(
            running(
                "orders",
                orders,
                SIDECAR=f"http://127.0.0.1:{pair.a.port}",
                PAYMENTS=f"http://127.0.0.1:{payments}",
                **both,
            )
        )
        yield stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{orders}", timeout=60.0))


def test_two_services_commit_together(shop: httpx.Client, pair: Pair) -> None:
    answer = shop.post("/order", json={"account": 901, "amount": 10})
    assert (answer.status_code, answer.json()["outcome"]) == (200, "committed"), answer.text
    assert pair.balances(901) == [90, 110]


def test_the_failure_of_one_undoes_the_other(shop: httpx.Client, pair: Pair) -> None:
    answer = shop.post("/order", json={"account": 902, "amount": 3_000_000_000})
    assert (answer.status_code, answer.json()["outcome"]) == (409, "aborted"), answer.text
    assert pair.balances(902) == [100, 100]


def sent(propagation: Propagation, url: str, **headers: str) -> str | None:
    request = httpx.Request("GET", url, headers=headers)
    propagation.synchronous(request)
    header: str | None = request.headers.get(HEADER)
    return header


def test_the_header_goes_to_the_named_hosts_alone() -> None:
    """It is a secret. Broken if a redirect or another request carries it elsewhere."""
    propagation = Propagation(["payments.internal"])
    assert sent(propagation, "http://payments.internal/") is None
    with working_in(JoinedTransaction.parse(header())):
        assert sent(propagation, "http://PAYMENTS.internal:8080/x") == header()
        for url in (
            "http://evil.test/",
            "http://payments.internal.evil.test/",
            "http://x.payments.internal/",
        ):
            assert sent(propagation, url) is None
            assert sent(propagation, url, **{HEADER: header()}) is None
    assert current() is None


@pytest.mark.parametrize("hosts", ["payments.internal", []])
def test_hosts_are_a_list_of_names(hosts: Any) -> None:
    with pytest.raises(UsageError):
        Propagation(hosts)


async def through(*headers: str) -> tuple[int, JoinedTransaction | None]:
    """The status, and the transaction in which the application worked."""
    seen: list[JoinedTransaction | None] = []
    statuses: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current())
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    shown = [(HEADER.lower().encode(), value.encode("latin-1")) for value in headers]
    await JoinTransaction(app)({"type": "http", "headers": shown}, receive, send)
    return statuses[0], seen[0] if seen else None


async def test_a_request_works_in_the_transaction_of_its_header() -> None:
    status, found = await through(header())
    assert status == 200
    assert found is not None
    assert (found.id, found.header) == (PAYLOAD["transaction"], header())
    assert header() not in repr(found)


async def test_a_request_without_a_header_works_in_none() -> None:
    """Also where the code that calls it works in one. Broken if requests of others join it."""
    with working_in(JoinedTransaction.parse(header())):
        assert await through() == (200, None)
    with pytest.raises(UsageError, match=HEADER):
        joined(httpx.AsyncClient())


@pytest.mark.parametrize(
    "headers",
    [("x",), ("",), (header(), header()), (header([1]),), (header({"transaction": "../../x"}),), ("é.é",)],
)
async def test_what_no_sidecar_made_is_refused(headers: tuple[str, ...]) -> None:
    assert await through(*headers) == (400, None)


class Failing(Exception):
    """Of the application."""


def answering(commit: httpx.Response | Exception, asked: list[str]) -> httpx.AsyncClient:
    """A client of a sidecar that answers a commit so."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path.rpartition("/")[2])
        if asked[-1] == "transactions":
            return httpx.Response(201, json={"id": PAYLOAD["transaction"], "join": header()})
        if asked[-1] == "commit" and isinstance(commit, Exception):
            raise commit
        return commit if asked[-1] == "commit" and isinstance(commit, httpx.Response) else httpx.Response(200)

    return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://sidecar")


@pytest.mark.parametrize(
    "commit",
    [httpx.ReadTimeout("late"), httpx.ConnectError("gone")]
    + [httpx.Response(status, json={"name": "X"}) for status in (202, 404, 500, 503)]
    + [
        httpx.Response(409, json={"name": "TransactionEnded"}),
        httpx.Response(409, json={"name": "X", "outcome": "unknown"}),
        httpx.Response(408, text="a proxy's: the answer came too late"),
    ],
    ids=str,
)
async def test_a_commit_without_an_outcome_is_not_taken_for_aborted(
    commit: httpx.Response | Exception,
) -> None:
    asked: list[str] = []
    with pytest.raises(SidecarOutcomeUnknown):
        async with transaction(answering(commit, asked)):
            pass
    assert asked == ["transactions", "commit"]


async def test_a_commit_that_is_refused_says_why() -> None:
    refusal = httpx.Response(409, json={"name": "TransactionAborted", "outcome": "aborted"})
    with pytest.raises(SidecarRefused) as refused:
        async with transaction(answering(refusal, [])):
            pass
    assert (refused.value.name, refused.value.outcome) == ("TransactionAborted", "aborted")


@pytest.mark.parametrize(
    ("commit", "told"),
    [
        (httpx.Response(200, json={"outcome": "committed"}), "committed"),
        (httpx.Response(409, json={"name": "TransactionAborted", "outcome": "aborted"}), "aborted"),
        (
            httpx.Response(409, json={"name": "HeuristicOutcome", "outcome": "mixed"}),
            "mixed",
        ),
        (httpx.Response(202, json={"outcome": "unknown"}), "unknown"),
        (httpx.ReadTimeout("late"), "unknown"),
    ],
    ids=["committed", "aborted", "heuristic", "not-known-yet", "no-answer"],
)
async def test_the_example_of_two_services_tells_each_outcome(
    commit: httpx.Response | Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if what has committed somewhere is told as aborted by a program that people copy."""
    monkeypatch.setattr(services, "sidecar", answering(commit, []))
    paid = httpx.MockTransport(lambda _: httpx.Response(200, json={}))
    monkeypatch.setattr(services, "services", httpx.AsyncClient(transport=paid))
    transport = httpx.ASGITransport(services.APPLICATIONS["orders"])
    async with httpx.AsyncClient(transport=transport, base_url="http://orders") as client:
        answer = await client.post("/order", json={"account": 1, "amount": 15})
    assert answer.json()["outcome"] == told


NODE = """
const { transaction } = require(process.argv[1]);
const [told, fails] = [JSON.parse(process.argv[2]), process.argv[3] === "true"];
const asked = [];
globalThis.fetch = async (url) => {
  asked.push(url.split("/").pop());
  const commit = asked.at(-1) === "commit";
  if (commit && told.status === 0) throw new TypeError("fetch failed");
  const body = commit ? told.body : { id: "1-0123456789abcdef.7" };
  return { ok: !commit || told.status < 300, json: async () => body };
};
const work = async () => { if (fails) throw new Error("failed"); };
transaction({ sidecar: "http://sidecar", token: "x" }, work)
  .catch((error) => ({ outcome: error.message }))
  .then(({ outcome }) => console.log(JSON.stringify([outcome, asked])));
"""


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, {"outcome": "committed"}, "committed"),
        (409, {"name": "TransactionAborted", "outcome": "aborted"}, "aborted"),
        (409, {"name": "HeuristicOutcome", "outcome": "mixed"}, "mixed"),
        (202, {"outcome": "unknown"}, "unknown"),
        (503, {"name": "Draining"}, "unknown"),
        (0, {}, "unknown"),
        (None, {}, "failed"),
    ],
    ids=["committed", "aborted", "heuristic", "not-known-yet", "drains", "no-answer", "work-fails"],
)
def test_the_client_for_node_tells_each_outcome(status: int | None, body: dict[str, str], told: str) -> None:
    """Broken if services copy a client that takes an unknown outcome for an abort, or leaves a transaction
    behind."""
    node = shutil.which("node")
    if node is None:
        if os.environ.get("CI") == "true":
            pytest.fail("node is missing")
        pytest.skip("node is missing: apt install nodejs")
    client = str(ROOT / "examples/sidecar/node/undoubt.js")
    answer = json.dumps({"status": status, "body": body})
    words = [node, "-e", NODE, client, answer, "true" if status is None else "false"]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    last = "rollback" if status is None else "commit"
    assert json.loads(said.stdout) == [told, ["transactions", last]]


async def test_a_block_that_fails_is_rolled_back() -> None:
    """And works in the transaction until then. Broken if a failed block commits."""
    asked: list[str] = []
    with pytest.raises(Failing):
        async with transaction(answering(httpx.Response(200, json={}), asked)):
            assert current() is not None
            raise Failing
    assert asked == ["transactions", "rollback"]
    assert current() is None
