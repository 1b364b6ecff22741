"""What one client may take of what all share, and what a connection that takes nothing may keep."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.undoubt.sidecar.stage import Stage, staged, token
from undoubt.serve.sidecar.shares import may_take

REQUESTS_MAX = 10
END_S = 30.0


@pytest.fixture(scope="module")
def small(shops: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A sidecar for few."""
    with staged(
        tmp_path_factory.mktemp("small"),
        shops,
        requests_max=REQUESTS_MAX,
        transactions_max=20,
        keys_max=10,
        body_timeout_s=0.5,
        wait_max_s=60.0,
    ) as made:
        yield made


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_greedy_clients_leave_some(clients: int) -> None:
    held = [0] * clients
    for _ in range(1000):
        for client in range(clients):
            if may_take(held[client], sum(held), 100):
                held[client] += 1
    assert max(held) - min(held) <= 1
    assert may_take(0, sum(held), 100)
    assert sum(held) >= 75


def test_one_client_does_not_take_all_transactions(small: Stage) -> None:
    greedy, other = small.tcp("shop"), small.tcp("other")
    works = []
    while (answer := greedy.post("/v1/transactions", {"timeout_ms": 60_000})).status_code == 201:
        works.append(answer.json()["id"])
    assert (answer.status_code, answer.json()["name"]) == (429, "TooManyTransactions")
    assert other.begin().rollback().status_code == 200
    for id_ in works:
        assert greedy.post(f"/v1/transactions/{id_}/rollback").status_code == 200
    assert greedy.begin().rollback().status_code == 200


def test_one_client_does_not_take_all_keys(small: Stage) -> None:
    greedy, other = small.tcp("shop"), small.tcp("other")
    answers = [
        greedy.post("/v1/transactions", [], Idempotency_Key=f"g{each}").json()["name"] for each in range(20)
    ]
    assert answers[0] != "TooManyKeys" == answers[-1]
    assert other.post("/v1/transactions", [], Idempotency_Key="g1").json()["name"] != "TooManyKeys"


def test_one_client_does_not_take_all_requests(small: Stage) -> None:
    """Its statements wait for a lock."""
    greedy, other = small.tcp("shop"), small.tcp("other")
    works = [greedy.begin(timeout_ms=60_000) for _ in range(12)]
    answers: list[int] = []
    with psycopg.connect(small.databases["orders"], autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(78)")
        threads = [
            threading.Thread(
                target=lambda work=work: answers.append(
                    work.sql("select pg_advisory_xact_lock_shared(78)").status_code
                )
            )
            for work in works
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(answers) >= len(works) - REQUESTS_MAX + 2)  # refused ones do not wait
        assert {*answers} == {429}
        assert other.get("/v1/participants").status_code == 200
        assert other.begin().rollback().status_code == 200
    for thread in threads:
        thread.join()
    assert set(answers) == {200, 429}
    for work in works:
        assert work.rollback().status_code == 200


@pytest.mark.parametrize("known", [True, False])
def test_waiting_leaves_room(small: Stage, known: bool) -> None:
    """For an end, of a transaction of one's own or of one that nobody has begun yet."""
    work = small.tcp("shop").begin(timeout_ms=60_000)
    session, _, seq = work.id.rpartition(".")
    path = work.path if known else f"/v1/transactions/{session}.{int(seq) + 1_000_000}"
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{small.port}\r\nAuthorization: Bearer {token('shop')}\r\n"
        "Prefer: wait=60\r\n\r\n"
    )
    lines = [socket.create_connection(("127.0.0.1", small.port)) for _ in range(REQUESTS_MAX)]
    try:
        for line in lines:
            line.settimeout(END_S)
            line.sendall(request.encode())
        # Those that find no room to wait are answered at once.
        until(lambda: sum(map(_answered, lines)) >= REQUESTS_MAX // 2)
        assert small.tcp("shop").get("/v1/participants").status_code == 200
        assert small.tcp("other").get("/v1/participants").status_code == 200
    finally:
        for line in lines:
            line.close()
    assert work.rollback().status_code == 200


def _answered(line: socket.socket) -> bool:
    return bool(select.select([line], [], [], 0)[0])


def test_answers_that_nobody_takes_are_not_kept(small: Stage) -> None:
    """Broken if a client that reads nothing keeps connections, and the answers, for as long as it likes."""
    work = small.tcp("shop").begin(timeout_ms=60_000)
    body = b'{"participant": "orders", "sql": "select repeat(\'x\', 1000) from generate_series(1, 900)"}'
    request = (
        f"POST {work.path}/statements HTTP/1.1\r\nHost: 127.0.0.1:{small.port}\r\n"
        f"Authorization: Bearer {token('shop')}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with line:
        line.connect(("127.0.0.1", small.port))
        line.sendall(request * 20)
        ends = f":{small.port:04X} 0100007F:{line.getsockname()[1]:04X} 01 "
        assert ends in Path("/proc/net/tcp").read_text()
        until(lambda: ends not in Path("/proc/net/tcp").read_text())
    assert work.rollback().status_code == 200


def test_what_is_too_large_is_not_kept(small: Stage) -> None:
    """Broken if the rows of a statement that was refused stay as long as its transaction is known."""
    assert small.process is not None
    status = Path(f"/proc/{small.process.pid}/status")

    def memory_mb() -> float:
        [line] = [each for each in status.read_text().splitlines() if each.startswith("VmRSS")]
        return int(line.split()[1]) / 1024

    def too_large() -> None:
        answer = small.tcp("shop").begin().sql("select repeat('x', 40000000)")
        assert answer.json()["reason"].startswith("TooMuch")

    too_large()
    before = memory_mb()
    for _ in range(5):
        too_large()
    assert memory_mb() - before < 100


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + END_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
