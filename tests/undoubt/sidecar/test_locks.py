"""Locks through the sidecar: held for a transaction of the client, seen and released by no other client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest

from tests.servers import Server
from tests.undoubt.cli.harness import undoubt
from tests.undoubt.sidecar.conftest import migrated_pair
from tests.undoubt.sidecar.stage import Client, Stage, Work, eventually_none_prepared, prepare, staged
from undoubt.participants.postgres.sqlstate import STALE_LOCK
from undoubt.serve.sidecar.locks import LOCKS_MAX


@pytest.fixture(scope="module")
def migrated(postgres: Server, other_postgres: Server) -> dict[str, str]:
    """Two databases that can guard locks."""
    return migrated_pair(postgres, other_postgres, "sidecar_locks")


@pytest.fixture(scope="module")
def guarded(migrated: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("locks"), migrated, wait_max_s=30.0, kept_s=60.0) as stage:
        yield stage


@pytest.fixture(autouse=True)
def nothing_prepared(migrated: dict[str, str]) -> Iterator[None]:
    yield
    for dsn in migrated.values():
        eventually_none_prepared(dsn)


def ask(work: Work, name: str, wait_s: int = 0, **more: Any) -> httpx.Response:
    headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
    return work.client.post("/v1/locks", {"transaction": work.id, "name": name, **more}, **headers)


def taken(work: Work, name: str, wait_s: int = 0, **more: Any) -> dict[str, Any]:
    answer = ask(work, name, wait_s, **more)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/locks/{answer.json()['token']}"
    return dict(answer.json())


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["name"]


def listed(client: Client, name: str) -> list[dict[str, Any]]:
    return [lock for lock in client.get("/v1/locks").json()["locks"] if lock["name"] == name]


def known_locks(stage: Stage) -> list[dict[str, Any]]:
    """All locks of the ledger, and who waits for them, as an operator sees them."""
    ran = undoubt("locks", "list", "--config", str(stage.config), "--output", "json")
    assert ran.status == 0, ran.err
    return list(ran.json)


def test_one_holder_and_a_higher_token_for_the_next(guarded: Stage) -> None:
    """Two holders at once; or a resource that cannot tell a former holder from the present one."""
    one, other = guarded.tcp("shop").begin(), guarded.tcp("other").begin()
    first = taken(one, "job")
    assert (first["name"], first["mode"], first["transaction"], first["held"]) == (
        "job",
        "exclusive",
        one.id,
        True,
    )
    assert problem(ask(other, "job")) == (409, "LockHeld")
    assert problem(ask(other, "job", mode="shared")) == (409, "LockHeld")
    given_back = one.client.delete(f"/v1/locks/{first['token']}").json()
    assert given_back == {"token": first["token"], "held": True}
    assert problem(one.client.delete(f"/v1/locks/{first['token']}")) == (404, "NoSuchLock")
    assert taken(other, "job")["token"] > first["token"]
    for work in (one, other):
        assert work.rollback().status_code == 200


def test_shared_holders(guarded: Stage) -> None:
    one, other = guarded.tcp("shop").begin(), guarded.tcp("other").begin()
    locks = [taken(work, "page", mode="shared") for work in (one, other)]
    assert locks[0]["token"] != locks[1]["token"]
    assert problem(ask(one, "page")) == (409, "LockHeld")
    for work in (one, other):
        assert work.rollback().status_code == 200


def test_a_transaction_does_not_wait_for_its_own_lock(guarded: Stage) -> None:
    """Broken if a client that repeats a request whose answer was lost waits for itself."""
    work = guarded.tcp("shop").begin()
    lock = taken(work, "mine")
    answer = ask(work, "mine", wait_s=20)
    assert problem(answer) == (409, "LockHeld")
    assert f"already, with token {lock['token']}" in answer.json()["detail"]
    assert work.rollback().status_code == 200


def test_nobody_sees_or_releases_the_locks_of_another_client(guarded: Stage) -> None:
    """A client could take the lock away from a holder in the middle of its work."""
    work, stranger = guarded.tcp("shop").begin(), guarded.tcp("other")
    lock = taken(work, "secret job")
    path = f"/v1/locks/{lock['token']}"
    assert listed(stranger, "secret job") == []
    assert listed(guarded.tcp("watcher"), "secret job") == listed(work.client, "secret job") == [lock]
    assert problem(stranger.delete(path)) == (404, "NoSuchLock")
    assert problem(stranger.post(f"{path}/guard", {"participant": "orders"})) == (404, "NoSuchLock")
    assert problem(guarded.tcp("watcher").delete(path)) == (403, "NotAllowed")
    assert problem(ask(Work(stranger, work.id), "another job")) == (404, "NoSuchTransaction")
    assert guarded.tcp(None).get("/v1/locks").status_code == 401
    assert problem(ask(stranger.begin(), "secret job")) == (409, "LockHeld")
    assert work.rollback().status_code == 200


@pytest.mark.parametrize("end", ["commit", "rollback", "deadline"])
def test_the_lock_is_given_back_with_the_transaction(guarded: Stage, end: str) -> None:
    """A client that has vanished would hold it for ever."""
    work = guarded.tcp("shop").begin(timeout_ms=500 if end == "deadline" else 60_000)
    first = taken(work, "to be given back")
    if end == "commit":
        work.run("select 1")
        assert work.commit().status_code == 200
    elif end == "rollback":
        assert work.rollback().status_code == 200
    following = guarded.tcp("other").begin()
    assert taken(following, "to be given back", wait_s=20)["token"] > first["token"]
    assert problem(ask(work, "another"))[0] == 409
    assert following.rollback().status_code == 200


def test_it_waits_as_long_as_the_client_says(guarded: Stage) -> None:
    one, other = guarded.tcp("shop").begin(), guarded.tcp("other").begin()
    lock = taken(one, "waited for")
    assert problem(ask(other, "waited for", wait_s=1)) == (409, "LockHeld")
    releasing = threading.Timer(0.5, one.client.delete, [f"/v1/locks/{lock['token']}"])
    releasing.start()
    answer = ask(other, "waited for", wait_s=20)
    releasing.join()
    assert (answer.status_code, answer.headers["preference-applied"]) == (201, "wait=20")
    for work in (one, other):
        assert work.rollback().status_code == 200


@pytest.mark.parametrize("name", ["", "a\nb", "n" * 201])
def test_a_bad_name(guarded: Stage, name: str) -> None:
    work = guarded.tcp("shop").begin()
    assert problem(ask(work, name)) == (422, "UsageError")
    assert work.rollback().status_code == 200


@pytest.mark.parametrize("path", ["0", "x", "-1", "9" * 30, "½"])
def test_no_token(guarded: Stage, path: str) -> None:
    assert problem(guarded.tcp("shop").delete(f"/v1/locks/{path}")) == (404, "NoSuchLock")


def test_a_stale_holder_is_refused_by_the_database(guarded: Stage) -> None:
    """A client that was stopped while it held the lock would write over what the next holder has written."""
    stale = taken(guarded.tcp("shop").begin(), "it's guarded")
    assert guarded.tcp("shop").delete(f"/v1/locks/{stale['token']}").status_code == 200
    work = guarded.tcp("shop").begin()
    lock = taken(work, "it's guarded")
    answer = work.client.post(f"/v1/locks/{lock['token']}/guard", {"participant": "orders"})
    assert (answer.status_code, answer.json()) == (200, {"token": lock["token"], "participant": "orders"})
    elsewhere = work.client.post(f"/v1/locks/{lock['token']}/guard", {"participant": "payments"})
    assert problem(elsewhere) == (403, "NoSqlHere")
    branch = work.announce("payments")
    prepare(guarded.databases["payments"], branch, lock["guard"])
    assert work.commit().status_code == 200
    for dsn in guarded.databases.values():
        with psycopg.connect(dsn) as connection, pytest.raises(psycopg.Error) as refused:
            connection.execute(stale["guard"])
        assert refused.value.sqlstate == STALE_LOCK


def test_a_lock_that_an_operator_has_released(guarded: Stage) -> None:
    """The client would take its work for protected until it gave the lock back."""
    work = guarded.tcp("shop").begin()
    lock = taken(work, "job")
    release = ("locks", "release", "job", "--token", str(lock["token"]), "--yes")
    ran = undoubt(*release, "--config", str(guarded.config))
    assert ran.status == 0, ran.err
    given_back = work.client.delete(f"/v1/locks/{lock['token']}").json()
    assert given_back == {"token": lock["token"], "held": False}


def test_no_more_locks_than_the_limit_where_several_are_waited_for(guarded: Stage) -> None:
    """A transaction could hold more locks than it may: all requests wait while there is still room for each.
    The lock that is refused is free again."""
    work, holder = guarded.tcp("shop").begin(), guarded.tcp("other").begin()
    names = ["the last", "one too many"]
    held = [taken(holder, name) for name in names]
    for number in range(LOCKS_MAX - 1):
        taken(work, f"lock {number}")
    answers: list[tuple[str, httpx.Response]] = []
    waiting = [
        threading.Thread(target=lambda name=name: answers.append((name, ask(work, name, wait_s=30))))
        for name in names
    ]
    for thread in waiting:
        thread.start()
    while [lock["waiting"] for lock in known_locks(guarded) if lock["name"] in names] != [1, 1]:
        pass
    for lock in held:
        assert holder.client.delete(f"/v1/locks/{lock['token']}").status_code == 200
    for thread in waiting:
        thread.join()
    [refused] = [(name, answer) for name, answer in answers if answer.status_code != 201]
    assert problem(refused[1]) == (422, "TooManyLocks")
    mine = [lock for lock in work.client.get("/v1/locks").json()["locks"] if lock["transaction"] == work.id]
    assert len(mine) == LOCKS_MAX
    taken(holder, refused[0])
    for each in (work, holder):
        assert each.rollback().status_code == 200


def test_a_row_and_a_lock_in_opposite_order(guarded: Stage) -> None:
    """Both clients would wait until their transactions' deadlines."""
    row, lock = guarded.tcp("shop").begin(), guarded.tcp("other").begin()
    update = "update account set balance = balance + 1 where id = 7"
    row.run(update)
    taken(lock, "in a circle")
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(lock.sql(update)))
    waiting.start()
    answers.append(ask(row, "in a circle", wait_s=25))
    waiting.join()
    victims = [each for each in answers if each.status_code == 409]
    assert [each.json()["name"] for each in victims] == ["TransactionAborted"]
    assert "deadlock across ledger locks, orders" in victims[0].json()["reason"]
    for work in (row, lock):
        work.rollback()
