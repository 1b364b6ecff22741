"""Requests that are in the database when their transaction ends: their client is told what has ended it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import httpx
import psycopg
import pytest

from tests.undoubt.sidecar.stage import Stage, Work, value

WAITS = (
    "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    " and pid <> pg_backend_pid()"
)


@pytest.fixture
def closed(outboxes: Stage) -> Iterator[None]:
    """Nobody gets at undoubt's tables of one database."""
    with psycopg.connect(outboxes.databases["orders"]) as connection:
        connection.execute("lock table undoubt.undoubt_lock, undoubt.undoubt_outbox")
        yield
        connection.rollback()


def message(work: Work) -> Callable[[], httpx.Response]:
    body = {"participant": "orders", "topic": "placed", "payload": "a lamp"}
    return lambda: work.client.post(f"{work.path}/messages", body)


def guard(work: Work) -> Callable[[], httpx.Response]:
    lock = work.client.post("/v1/locks", {"transaction": work.id, "name": "the last lamp"}).json()
    return lambda: work.client.post(f"/v1/locks/{lock['token']}/guard", {"participant": "orders"})


def statement(work: Work) -> Callable[[], httpx.Response]:
    return lambda: work.sql("select * from undoubt.undoubt_lock")


@pytest.mark.parametrize("end", ["rollback", "commit"])
@pytest.mark.parametrize("prepared", [message, guard, statement])
@pytest.mark.usefixtures("closed")
def test_it_tells_what_has_ended_its_transaction(
    outboxes: Stage, prepared: Callable[[Work], Callable[[], httpx.Response]], end: str
) -> None:
    """Broken if it is told that the database is gone, or that somebody has cancelled a statement."""
    work = outboxes.tcp().begin()
    request = prepared(work)
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(request()))
    asking.start()
    while not value(outboxes.databases["orders"], WAITS):
        pass
    ended = work.client.post(f"{work.path}/{end}")
    assert ended.status_code == (200 if end == "rollback" else 409)
    asking.join()
    told = answers[0].json()
    assert told["name"] in {"TransactionAborted", "TransactionEnded"}
    if end == "rollback":
        assert told["reason"] == "it was rolled back by its client"
