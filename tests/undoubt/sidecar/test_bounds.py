"""Requests that are too large, too many, repeated, or no requests at all."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest

from tests.undoubt.sidecar.stage import Stage, token


def raw(stage: Stage, *parts: bytes, ends: bool = True) -> bytes:
    """What the server answers to these bytes, until it closes or says all. ``ends``: nothing follows them."""
    with socket.create_connection(("127.0.0.1", stage.port)) as connection:
        connection.settimeout(30)
        for part in parts:
            connection.sendall(part)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while data := connection.recv(65_536):
                found += data
        except ConnectionResetError:
            pass
        return found


def head(
    stage: Stage, method: str, path: str, *lines: str, close: Sequence[str] = ("Connection: close",)
) -> bytes:
    given = [
        f"{method} {path} HTTP/1.1",
        f"Host: 127.0.0.1:{stage.port}",
        f"Authorization: Bearer {token('shop')}",
        *close,
        *lines,
    ]
    return "\r\n".join([*given, "", ""]).encode()


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"timeout_ms": "x"}', "application/json", 422),
        (b'{"timeout_ms": 0}', "application/json", 422),
        (b'{"timeout_ms": 1e400}', "application/json", 422),
        (b'{"unknown": 1}', "application/json", 422),
        (b'{"protocol": "4pc"}', "application/json", 422),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b"[" * 5000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"timeout_ms=1", "application/x-www-form-urlencoded", 415),
    ],
)
def test_bad_bodies(stage: Stage, body: bytes, kind: str, status: int) -> None:
    answer = stage.tcp().http.post("/v1/transactions", content=body, headers={"Content-Type": kind})
    assert answer.status_code in {status, 422} if status == 400 else answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_that_is_too_large(stage: Stage) -> None:
    answer = stage.tcp().http.post(
        "/v1/transactions", content=b" " * 200_000, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413


def test_a_chunked_body_that_is_too_large(stage: Stage) -> None:
    """Its length is told nowhere."""
    answer = stage.tcp().http.post(
        "/v1/transactions",
        content=iter([b" " * 50_000] * 5),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 413


def test_a_body_that_does_not_come(stage: Stage) -> None:
    """Each request that is being read takes memory and a place."""
    with socket.create_connection(("127.0.0.1", stage.port)) as connection:
        connection.settimeout(30)
        connection.sendall(
            head(stage, "POST", "/v1/transactions", "Content-Length: 10", "Content-Type: application/json")
        )
        assert connection.recv(65_536).startswith(b"HTTP/1.1 408")


def test_a_head_that_is_too_large(stage: Stage) -> None:
    answer = raw(stage, head(stage, "GET", "/livez", *(f"X-{number}: {'x' * 1000}" for number in range(50))))
    assert refused(answer)
    assert stage.tcp().get("/livez").status_code == 200


def refused(answer: bytes) -> bool:
    """Whether it is the problem document for what is no HTTP, and nothing else."""
    head, _, body = answer.partition(b"\r\n\r\n")
    problem = json.loads(body)
    kind = b"content-type: application/problem+json" in head
    return (
        kind
        and head.startswith(b"HTTP/1.1 400 ")
        and (problem["status"], problem["name"]) == (400, "NotHttp")
    )


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request(stage: Stage, sent: bytes) -> None:
    assert refused(raw(stage, sent))
    assert stage.tcp().get("/livez").status_code == 200


JSON_OF_TWO = ("Content-Type: application/json", "Content-Length: 2")


def test_garbage_behind_a_request_is_not_its_answer(stage: Stage) -> None:
    """Broken if the client of a commit reads a refusal while the commit goes on."""
    work = stage.tcp().begin()
    work.run("select pg_sleep(0.01)")
    commit = head(stage, "POST", f"{work.path}/commit", *JSON_OF_TWO, close=()) + b"{}"
    answer = raw(stage, commit + b"garbage", ends=False)
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert work.show()["state"] == "committed"
    work = stage.tcp().begin()
    work.run("select 1")
    commit = head(stage, "POST", f"{work.path}/commit", *JSON_OF_TWO, close=()) + b"{}"
    assert raw(stage, commit + head(stage, "GET", "/livez", close=()) + b"\0", ends=False) == b""
    assert work.show(wait_s=20)["state"] == "committed"


OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")
"""What java.net.http sends with its first request."""
BODIES = {
    "length": (("Content-Length: 21",), b'{"timeout_ms": 60000}'),
    "chunks": (("Transfer-Encoding: chunked",), b'5\r\n{"tim\r\n10\r\neout_ms": 60000}\r\n0\r\n\r\n'),
    "none": ((), b""),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("apart", [False, True])
def test_an_offer_of_another_protocol_is_a_plain_request(stage: Stage, name: str, apart: bool) -> None:
    """Broken if the body of such a request is lost, or taken for the next request."""
    lines, body = BODIES[name]
    request = head(stage, "POST", "/v1/transactions", "Content-Type: application/json", *lines, close=OFFER)
    last = head(stage, "GET", "/livez")
    for parts in ((request, body, last), (request[:30], request[30:] + body[:3], body[3:] + last)):
        sent = [*parts] if apart else [b"".join(parts)]
        answer = raw(stage, *sent, ends=False)  # the last one closes
        assert answer.startswith(b"HTTP/1.1 201"), answer
        assert answer.count(b"HTTP/1.1 ") == 2, answer
        assert b'{"ok":true' in answer


def test_a_bound_holds_for_a_request_with_an_offer(stage: Stage) -> None:
    large = head(
        stage,
        "POST",
        "/v1/transactions",
        "Content-Type: application/json",
        "Content-Length: 200000",
        close=OFFER,
    )
    assert raw(stage, large, ends=False).startswith(b"HTTP/1.1 413")


def test_nothing_is_connected(stage: Stage) -> None:
    for target in ("/v1/transactions", "example.org:80"):
        answer = raw(stage, head(stage, "CONNECT", target, close=OFFER) + b"GET / HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 4"), answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/v1/transactions", 405),
        ("DELETE", "/v1/transactions", 405),
        ("OPTIONS", "/v1/transactions", 405),
        ("POST", "/", 405),
        ("GET", "/livez/", 404),
        ("GET", "/v2/transactions", 404),
        ("GET", "/v1/transactions/../../etc/passwd", 404),
        ("GET", "/v1/transactions/%00", 404),
        ("GET", "/v1/transactions/1-0123456789abcdef.1", 404),
        ("GET", "/v1/transactions/" + "9" * 3000, 404),
        ("POST", "/v1/transactions/x'; drop table account; --/commit", 404),
        ("DELETE", "/v1/transactions/1-0123456789abcdef.1/branches/99999999999999999999", 404),
    ],
)
def test_wrong_methods_and_paths(stage: Stage, method: str, path: str, status: int) -> None:
    answer = stage.tcp().http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_too_many_transactions(stage: Stage) -> None:
    """429, and when to come again; what is open goes on, and ends make room."""
    client = stage.tcp()
    works = []
    while (answer := client.post("/v1/transactions", {"timeout_ms": 60_000})).status_code == 201:
        works.append(answer.json()["id"])
    assert (answer.status_code, answer.json()["name"]) == (429, "TooManyTransactions")
    assert int(answer.headers["retry-after"]) >= 1
    assert len(works) <= 60
    for id_ in works:
        assert client.post(f"/v1/transactions/{id_}/rollback").status_code == 200
    assert client.begin().rollback().status_code == 200


def test_too_many_branches(stage: Stage) -> None:
    work = stage.tcp().begin()
    for _ in range(5):
        work.announce("payments")
    answer = work.client.post(f"{work.path}/branches", {"participant": "payments"})
    assert (answer.status_code, answer.json()["name"]) == (422, "TooManyBranches")
    assert work.rollback().status_code == 200


@pytest.mark.parametrize(
    "sql",
    [
        "select * from generate_series(1, 100000)",
        "select repeat('x', 200000)",
        "copy account to stdout",
        "copy account from stdin",
    ],
)
def test_an_answer_that_is_too_large_aborts(stage: Stage, sql: str) -> None:
    """Cut off it would be taken for all there is."""
    work = stage.tcp().begin()
    answer = work.sql(sql)
    told = answer.json()
    assert (answer.status_code, told["name"]) == (409, "TransactionAborted")
    assert told["reason"].startswith("TooMuch")
    assert work.show()["state"] == "aborted"


def test_a_row_that_is_too_large_is_not_read_to_its_end(stage: Stage) -> None:
    """Broken if a client makes the sidecar hold a row of up to 1 GB, or one for each of its transactions."""
    row_bytes = 400_000_000
    before = memory_peak(stage)
    work = stage.tcp().begin()
    answer = work.sql(f"select repeat('x', {row_bytes})")
    assert answer.json()["reason"].startswith("TooMuch")
    assert memory_peak(stage) - before < row_bytes / 2


def memory_peak(stage: Stage) -> int:
    """The most bytes that the sidecar has held so far (proc(5), VmHWM)."""
    assert stage.process is not None
    status = Path(f"/proc/{stage.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_a_key_gives_the_first_answer_again(stage: Stage) -> None:
    """draft-ietf-httpapi-idempotency-key-header: an answer that was lost on its way is asked for again."""
    client = stage.tcp()
    first = client.post("/v1/transactions", Idempotency_Key="one-1")
    again = client.post("/v1/transactions", Idempotency_Key='"one-1"')
    assert (first.status_code, first.json()) == (201, again.json())
    path = f"/v1/transactions/{first.json()['id']}"
    body = {
        "participant": "orders",
        "sql": "update account set balance = balance + 1 where id = 999 returning *",
    }
    rows = [client.post(f"{path}/statements", body, Idempotency_Key="s1").json() for _ in range(3)]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0]["tag"] == "UPDATE 1"
    assert client.post(f"{path}/statements", body).json()["rows"][0][1] == rows[0]["rows"][0][1] + 1
    assert client.post(f"{path}/rollback").status_code == 200


def test_a_key_is_of_its_path_whatever_the_host(stage: Stage) -> None:
    """Broken if a Host that is no name, which the unix socket lets through, makes an error or another path
    of it."""
    client = stage.unix()
    for host in ("[", "sidecar?"):
        first = client.post("/v1/transactions", Idempotency_Key=f"host-{host[:1]}", Host=host)
        assert first.status_code == 201
        path = f"/v1/transactions/{first.json()['id']}/rollback"
        assert client.post(path, Idempotency_Key=f"of-{host[:1]}", Host=host).status_code == 200
        other = client.post("/v1/transactions", Idempotency_Key=f"of-{host[:1]}", Host=host)
        assert (other.status_code, other.json()["name"]) == (422, "IdempotencyKeyReused")


def test_a_key_is_of_its_request_and_its_client(stage: Stage) -> None:
    client = stage.tcp()
    first = client.post("/v1/transactions", Idempotency_Key="two")
    other = client.post("/v1/transactions", {"timeout_ms": 5}, Idempotency_Key="two")
    assert (other.status_code, other.json()["name"]) == (422, "IdempotencyKeyReused")
    theirs = stage.tcp("other").post("/v1/transactions", Idempotency_Key="two")
    assert theirs.json()["id"] != first.json()["id"]
    for name, id_ in (("shop", first.json()["id"]), ("other", theirs.json()["id"])):
        assert stage.tcp(name).post(f"/v1/transactions/{id_}/rollback").status_code == 200


@pytest.mark.parametrize("key", ["", '""', "a b", "x" * 256, '"open'])
def test_bad_keys(stage: Stage, key: str) -> None:
    answer = stage.tcp().post("/v1/transactions", Idempotency_Key=key)
    assert (answer.status_code, answer.json()["name"]) == (400, "BadIdempotencyKey")


def test_a_key_whose_request_is_being_worked_on(stage: Stage) -> None:
    work = stage.tcp().begin(timeout_ms=120_000)
    body = {"participant": "orders", "sql": "select pg_advisory_xact_lock(77)"}
    path = f"{work.path}/statements"
    answers: list[int] = []

    def ask() -> None:
        answers.append(stage.tcp().post(path, body, Idempotency_Key="held").status_code)

    with psycopg.connect(stage.databases["orders"], autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(77)")
        both = [threading.Thread(target=ask) for _ in range(2)]
        for each in both:
            each.start()
        while not answers:  # one of them waits for the lock, and the other is told so
            time.sleep(0.01)
        assert answers == [409]
    for each in both:
        each.join()
    assert answers == [409, 200]
    ask()
    assert answers == [409, 200, 200]
    assert work.rollback().status_code == 200


def test_a_failed_statement_is_told_again(stage: Stage) -> None:
    work = stage.tcp().begin()
    body = {"participant": "orders", "sql": "select 1/0"}
    first = work.client.post(f"{work.path}/statements", body, Idempotency_Key="f1")
    again = work.client.post(f"{work.path}/statements", body, Idempotency_Key="f1")
    assert first.json() == again.json()
    assert first.json()["sqlstate"] == "22012"
    assert work.rollback().status_code == 200
