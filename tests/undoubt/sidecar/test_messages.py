"""Messages over HTTP: in the outbox exactly if the transaction of the client has committed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest

from tests.undoubt.sidecar.conftest import paired
from tests.undoubt.sidecar.pair import Pair
from tests.undoubt.sidecar.stage import Stage, Work, eventually_none_prepared, prepare

MESSAGES = "select topic, key, payload, headers::text, dedupe_id from undoubt.undoubt_outbox order by id"


@pytest.fixture(autouse=True)
def empty(outboxes: Stage) -> Iterator[None]:
    """The outboxes, after each test."""
    yield
    for dsn in outboxes.databases.values():
        eventually_none_prepared(dsn)
        with psycopg.connect(dsn) as connection:
            connection.execute("delete from undoubt.undoubt_outbox")


def post(work: Work, participant: str = "orders", **message: Any) -> httpx.Response:
    return work.client.post(f"{work.path}/messages", {"participant": participant, **message})


def published(work: Work, participant: str = "orders", **message: Any) -> dict[str, Any]:
    answer = post(work, participant, **message)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["name"]


def found(dsn: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(MESSAGES).fetchall()
    return [(topic, key, payload, json.loads(headers), id_) for topic, key, payload, headers, id_ in rows]


def test_a_message_commits_with_its_transaction(outboxes: Stage) -> None:
    work = outboxes.tcp("shop").begin()
    first = published(work, payload={"item": "a lamp"}, topic="placed", key="ada", headers={"X-Kind": "new"})
    work.run("update account set balance = balance - 1 where id = 1")
    second = published(work, payload="text")
    third = published(work, payload_base64=base64.b64encode(bytes(range(256))).decode())
    assert {each["statement"] for each in (first, second, third)} == {""}
    assert found(outboxes.databases["orders"]) == []
    assert work.commit().status_code == 200
    json_, text, octets = "application/json", "text/plain; charset=utf-8", "application/octet-stream"
    assert found(outboxes.databases["orders"]) == [
        ("placed", "ada", b'{"item":"a lamp"}', {"content-type": json_, "x-kind": "new"}, first["dedupe_id"]),
        ("orders", None, b"text", {"content-type": text}, second["dedupe_id"]),
        ("orders", None, bytes(range(256)), {"content-type": octets}, third["dedupe_id"]),
    ]


def test_a_message_goes_with_what_is_rolled_back(outboxes: Stage) -> None:
    """A receiver would be told of an order that nobody has placed."""
    work = outboxes.tcp("shop").begin()
    published(work, payload="never")
    assert work.rollback().status_code == 200
    assert problem(post(work, payload="late")) == (409, "TransactionAborted")
    announced = outboxes.tcp("shop").begin()
    published(announced, payload="never")
    announced.announce("payments")
    assert announced.commit().status_code == 409
    assert found(outboxes.databases["orders"]) == []


def test_json_is_sent_as_it_came(outboxes: Stage) -> None:
    """A number would lose its digits, a null could not be sent."""
    work = outboxes.tcp("shop").begin()
    numbers = '{"n": 12345678901234567890123, "x": 0.1000000000000000000001}'
    for payload in (numbers, "null"):
        answer = work.client.http.post(
            f"{work.path}/messages",
            content=f'{{"participant": "orders", "payload": {payload}}}',
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 201, answer.text
    published(work, payload={}, headers={"Content-Type": "application/cloudevents+json"})
    assert work.commit().status_code == 200
    rows = found(outboxes.databases["orders"])
    assert [row[2] for row in rows] == [numbers.encode(), b"null", b"{}"]
    assert rows[2][3] == {"content-type": "application/cloudevents+json"}


def test_a_repeated_request_publishes_once(outboxes: Stage) -> None:
    """The caller that got no answer would have the message twice, with two dedupe ids."""
    work = outboxes.tcp("shop").begin()
    body = {"participant": "orders", "payload": "x"}
    answers = [work.client.post(f"{work.path}/messages", body, Idempotency_Key="once") for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert work.commit().status_code == 200
    assert len(found(outboxes.databases["orders"])) == 1


def test_a_branch_that_the_client_runs(outboxes: Stage) -> None:
    """It runs the statement, in its own session; outside the branch the statement is refused."""
    work = outboxes.tcp("shop").begin()
    branch = work.announce("payments")
    told = [published(work, "payments", payload=f"it's {n}", branch=branch["n"]) for n in range(2)]
    assert told[0]["dedupe_id"] != told[1]["dedupe_id"]
    prepare(outboxes.databases["payments"], branch, *(each["statement"] for each in told))
    assert work.commit().status_code == 200
    rows = found(outboxes.databases["payments"])
    assert [(row[2], row[4]) for row in rows] == [
        (f"it's {n}".encode(), told[n]["dedupe_id"]) for n in range(2)
    ]
    with (
        psycopg.connect(outboxes.databases["payments"]) as connection,
        pytest.raises(psycopg.errors.InvalidTextRepresentation, match="undoubt marker"),
    ):
        connection.execute(told[0]["statement"])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({}, "either payload or payload_base64"),
        ({"payload": 1, "payload_base64": "eA=="}, "either payload or payload_base64"),
        ({"payload_base64": "e"}, "base64"),
        ({"payload": "x", "topic": ""}, "topic"),
        ({"payload": "x", "key": "k" * 201}, "key"),
        ({"payload": "x", "headers": {"Host": "elsewhere"}}, "Host"),
        ({"payload": "x", "headers": {"a": "1\r\n2"}}, "headers"),
        ({"payload": "x", "branch": 0}, "branch"),
        ({"payload": "x", "more": 1}, "more"),
    ],
)
def test_what_cannot_be_published(outboxes: Stage, message: dict[str, Any], words: str) -> None:
    """The transaction goes on."""
    work = outboxes.tcp("shop").begin()
    answer = post(work, **message)
    assert problem(answer) == (422, "UsageError")
    assert words in answer.json()["detail"]
    published(work, payload="good")
    assert work.commit().status_code == 200
    assert len(found(outboxes.databases["orders"])) == 1


def test_who_may_publish(outboxes: Stage) -> None:
    """A client could send a message in another one's name."""
    work = outboxes.tcp("shop").begin()
    branch = work.announce("payments")
    stranger = Work(outboxes.tcp("other"), work.id)
    assert problem(post(stranger, payload="x")) == (404, "NoSuchTransaction")
    assert problem(post(Work(outboxes.tcp("watcher"), work.id), payload="x")) == (403, "NotAllowed")
    assert problem(post(work, "payments", payload="x")) == (403, "NoSqlHere")
    assert problem(post(work, "payments", payload="x", branch=branch["n"] + 1)) == (404, "NoSuchBranch")
    assert problem(post(work, payload="x", branch=branch["n"])) == (422, "UsageError")
    assert problem(post(stranger.client.begin(), "payments", payload="x")) == (403, "NotAllowed")
    assert problem(post(work, "stock", payload="x")) == (404, "UnknownParticipant")
    assert work.rollback().status_code == 200


def test_a_service_that_joins_publishes(outboxes: Stage, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In the branch that its own sidecar runs, in the one that the owner runs, and in one of its own."""
    ledger = f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db"
    databases = dict(outboxes.databases)
    with paired(databases, ledger, tmp_path_factory) as pair:
        _publish_joined(pair)
    assert [row[2] for row in found(databases["orders"])] == [b"by the owner"]
    assert [row[2] for row in found(databases["payments"])] == [b"by the agent", b"by hand"]


def _publish_joined(pair: Pair) -> None:
    work, joined = pair.begin()
    published(joined, "orders", payload="by the owner")
    published(joined, "payments", payload="by the agent")
    narrow = pair.a.tcp("other").begin()  # whose client may use orders alone
    assert problem(post(pair.joined(narrow), "payments", payload="x")) == (403, "NotAllowed")
    assert narrow.rollback().status_code == 200
    assert work.commit().status_code == 200
    work, joined = pair.begin()
    branch = joined.announce("payments")
    told = published(joined, "payments", payload="by hand", branch=branch["n"])
    prepare(pair.databases["payments"], branch, told["statement"])
    assert work.commit().status_code == 200
