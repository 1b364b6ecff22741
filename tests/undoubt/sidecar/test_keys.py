"""Transactions with a key: exactly once, whichever sidecar of the ledger is asked."""

from __future__ import annotations

import re
import secrets
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.docs.pages import ROOT
from tests.undoubt.sidecar.pair import Pair
from tests.undoubt.sidecar.stage import Client, Stage, Work, eventually_none_prepared, staged, value

TAKE = "update account set balance = balance - 10 where id = {}"
BEGIN = "/v1/transactions"


def new_key() -> str:
    return secrets.token_hex(8)


def began(client: Client, key: str, **more: Any) -> httpx.Response:
    return client.post(BEGIN, {"key": key}, **more)


def work_of(client: Client, answer: httpx.Response) -> Work:
    assert answer.status_code == 201, answer.text
    return Work(client, answer.json()["id"])


def commit(work: Work, result: Any) -> httpx.Response:
    return work.client.post(f"{work.path}/commit", {"result": result})


def balance(databases: Mapping[str, str], account: int) -> int:
    return int(value(databases["orders"], f"select balance from account where id = {account}"))


def test_a_repetition_is_answered_by_any_sidecar(pair: Pair) -> None:
    """A service whose request is sent again to another sidecar would do its work twice."""
    account, key, result = pair.account(), new_key(), {"order": 42, "lines": [1, None, "x"]}
    first = work_of(pair.a.tcp(), began(pair.a.tcp(), key))
    first.run(TAKE.format(account))
    assert commit(first, result).status_code == 200
    for client in (pair.a.tcp(), pair.b.tcp()):
        again = began(client, key)
        assert (again.status_code, again.json()) == (
            200,
            {
                "id": first.id,
                "outcome": "committed",
                "repeated": True,
                "result": result,
                "result_base64": "",
            },
        )
    assert balance(pair.databases, account) == 90


def test_a_key_in_use_is_told_and_can_be_waited_for(pair: Pair) -> None:
    """A second request would begin beside the first one; or its Idempotency-Key would keep the refusal."""
    account, key = pair.account(), new_key()
    first = work_of(pair.a.tcp(), began(pair.a.tcp(), key))
    first.run(TAKE.format(account))
    name = new_key()
    refused = began(pair.b.tcp(), key, Idempotency_Key=name)
    assert refused.status_code == 409, refused.text
    assert refused.json()["name"] == "KeyInUse"
    assert refused.json()["transaction"] == first.id
    assert "retry-after" in refused.headers
    answers: list[httpx.Response] = []
    waiting = threading.Thread(
        target=lambda: answers.append(began(pair.b.tcp(), key, Prefer="wait=30", Idempotency_Key=name))
    )
    waiting.start()
    assert commit(first, 1).status_code == 200
    waiting.join()
    assert (answers[0].status_code, answers[0].json()["result"]) == (200, 1)


def test_a_key_whose_transaction_was_rolled_back_can_be_used_again(pair: Pair) -> None:
    """A service whose first try has failed could never do its work."""
    account, key = pair.account(), new_key()
    first = work_of(pair.a.tcp(), began(pair.a.tcp(), key))
    first.run(TAKE.format(account))
    assert first.rollback().status_code == 200
    second = work_of(pair.a.tcp(), began(pair.a.tcp(), key, Prefer="wait=30"))
    second.run(TAKE.format(account))
    assert second.commit().status_code == 200
    assert began(pair.b.tcp(), key).json()["result"] is None
    assert balance(pair.databases, account) == 90


def test_another_client_does_not_read_the_result(stage: Stage) -> None:
    """A client that guesses a key would read what another one has stored, or block its key."""
    key = new_key()
    first = work_of(stage.tcp(), began(stage.tcp(), key))
    first.run(TAKE.format(900))
    assert commit(first, "secret").status_code == 200
    other = work_of(stage.tcp("other"), began(stage.tcp("other"), key))
    assert other.id != first.id
    assert other.rollback().status_code == 200


def test_what_a_key_cannot_be_used_with_is_refused(stage: Stage) -> None:
    """It would be begun, and fail at commit."""
    client = stage.tcp()
    for body in (
        {"key": ""},
        {"key": "x" * 101},
        {"key": "a\nb"},
        {"key": 5},
        {"key": new_key(), "protocol": "3pc"},
    ):
        assert client.post(BEGIN, body).status_code == 422, body
    work = client.begin()
    work.run(TAKE.format(901))
    refused = commit(work, {"order": 1})
    assert (refused.status_code, refused.json()["name"]) == (422, "UsageError")
    assert work.show()["state"] == "active"
    assert work.rollback().status_code == 200
    keyed = work_of(client, began(client, new_key()))
    keyed.run(TAKE.format(901))
    assert commit(keyed, "x" * 20_000).status_code == 422
    assert commit(keyed, "x" * 16_000).status_code == 200


def test_the_longest_key_over_http_is_the_one_that_the_page_names(stage: Stage) -> None:
    """Broken if a client that makes its keys by the page is refused, or the page promises more."""
    page = (ROOT / "docs" / "exactly-once.md").read_text()
    [longest] = re.findall(r"Over HTTP a key has 1 to (\d+) characters", page)
    client = stage.tcp()
    work = work_of(client, began(client, new_key().ljust(int(longest), "x")))
    assert work.rollback().status_code == 200
    assert client.post(BEGIN, {"key": "x" * (int(longest) + 1)}).status_code == 422


def test_a_repetition_finds_what_a_killed_sidecar_has_committed(
    shops: Mapping[str, str], tmp_path: Path
) -> None:
    """The answer of a commit may be lost with its sidecar: the next one must not do the work again."""
    key = new_key()
    with staged(tmp_path, shops) as stage:
        first = work_of(stage.tcp(), began(stage.tcp(), key))
        first.run(TAKE.format(902))
        assert commit(first, [1]).status_code == 200
        stage.end(signal.SIGKILL)
        stage.start()
        again = began(stage.tcp(), key)
        assert (again.status_code, again.json()["result"]) == (200, [1])
        undecided = new_key()
        lost = work_of(stage.tcp(), began(stage.tcp(), undecided))
        lost.run(TAKE.format(902))
        stage.end(signal.SIGKILL)
        stage.start()
        # Its session has to expire first: until then it might still commit.
        third = work_of(stage.tcp(), began(stage.tcp(), undecided, Prefer="wait=60"))
        third.run(TAKE.format(902))
        assert third.commit().status_code == 200
        for dsn in shops.values():
            eventually_none_prepared(dsn)
    assert balance(shops, 902) == 80
