"""Begin, run branches in both ways, commit: and what becomes of a transaction that cannot."""

from __future__ import annotations

import secrets
import threading
import time

import psycopg
import pytest

from tests.undoubt.sidecar.stage import Stage, eventually_none_prepared, prepare, recorded, value
from undoubt.coordinator.ledger.contract import RecordedDecision

TAKE = "update account set balance = balance - 10 where id = {}"
GIVE = "update account set balance = balance + 10 where id = {}"

_ids = iter(range(1, 1000))


@pytest.fixture
def account() -> int:
    """A row that no other test uses."""
    return next(_ids)


def balances(stage: Stage, account: int) -> tuple[int, int]:
    statement = f"select balance from account where id = {account}"
    return (value(stage.databases["orders"], statement), value(stage.databases["payments"], statement))


@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_one_transaction_over_both_ways_of_a_branch(stage: Stage, account: int, way: str) -> None:
    """The whole point: a branch by the sidecar and one by a driver of the caller's commit together."""
    client = stage.unix() if way == "unix" else stage.tcp()
    work = client.begin()
    assert work.run(TAKE.format("$1"), account)["tag"] == "UPDATE 1"
    branch = work.announce("payments")
    prepare(stage.databases["payments"], branch, GIVE.format(account))
    assert work.show()["state"] == "active"
    assert {each["run_by"] for each in work.show()["branches"]} == {"caller", "sidecar"}
    answer = work.commit()
    assert (answer.status_code, answer.json()) == (
        200,
        {"id": work.id, "outcome": "committed", "pending": []},
    )
    assert balances(stage, account) == (90, 110)
    assert work.show()["state"] == "committed"
    assert work.commit().json()["outcome"] == "committed"
    assert work.rollback().status_code == 409


def test_a_single_branch_is_recorded_too(stage: Stage, account: int) -> None:
    """Whoever gets no answer asks the ledger: a commit in one phase would leave nothing there."""
    work = stage.tcp().begin()
    work.run(TAKE.format(account))
    assert work.commit().status_code == 200
    assert recorded(stage, work.id) is RecordedDecision.COMMIT


def test_a_reader_is_prepared_and_recorded(stage: Stage, account: int) -> None:
    work = stage.tcp().begin()
    work.run(f"select balance from account where id = {account}")
    assert work.commit().status_code == 200


def test_several_services_in_one_database(stage: Stage, account: int) -> None:
    """Each with a session of its own, and so a branch of its own."""
    work = stage.tcp().begin()
    for shift in (0, 300):
        branch = work.announce("payments")
        prepare(stage.databases["payments"], branch, GIVE.format(account + shift))
    assert work.commit().status_code == 200
    assert [balances(stage, account + shift)[1] for shift in (0, 300)] == [110, 110]


def test_a_branch_that_is_not_prepared_aborts_all_and_is_named(stage: Stage, account: int) -> None:
    """And one that is prepared afterwards is rolled back: its transaction was recorded as aborted."""
    work = stage.tcp().begin()
    work.run(TAKE.format(account))
    branch = work.announce("payments")
    answer = work.commit()
    assert answer.status_code == 409
    told = answer.json()
    assert (told["name"], told["outcome"], told["participant"]) == (
        "TransactionAborted",
        "aborted",
        "payments",
    )
    assert f"branch {branch['n']}:payments was announced, but is not prepared" in told["reason"]
    assert recorded(stage, work.id) is RecordedDecision.ABORT
    prepare(stage.databases["payments"], branch, GIVE.format(account))
    eventually_none_prepared(stage.databases["payments"])
    assert balances(stage, account) == (100, 100)
    assert work.show()["state"] == "aborted"


def test_a_branch_that_is_prepared_after_a_rollback_is_rolled_back(stage: Stage, account: int) -> None:
    work = stage.tcp().begin()
    branch = work.announce("payments")
    assert work.rollback().json() == {"id": work.id, "outcome": "aborted"}
    prepare(stage.databases["payments"], branch, GIVE.format(account))
    eventually_none_prepared(stage.databases["payments"])
    assert balances(stage, account) == (100, 100)
    assert work.rollback().status_code == 200
    assert work.commit().status_code == 409


def test_a_vanished_caller_is_undone_at_its_deadline(stage: Stage, account: int) -> None:
    """Both kinds of branches, prepared already or not."""
    work = stage.tcp().begin(timeout_ms=1500)
    work.run(TAKE.format(account))
    branch = work.announce("payments")
    prepare(stage.databases["payments"], branch, GIVE.format(account))
    told = work.show(wait_s=30)
    assert (told["state"], "TimeoutError" in told["reason"]) == ("aborted", True)
    eventually_none_prepared(stage.databases["payments"])
    assert balances(stage, account) == (100, 100)
    assert work.commit().status_code == 409
    assert work.sql("select 1").status_code == 409


def test_commit_freezes_the_list(stage: Stage, account: int) -> None:
    work = stage.tcp().begin()
    work.run(TAKE.format(account))
    assert work.commit().status_code == 200
    late = work.client.post(f"{work.path}/branches", {"participant": "payments"})
    assert (late.status_code, late.json()["name"]) == (409, "TransactionEnded")
    assert work.sql("select 1").json()["name"] == "TransactionEnded"


def test_a_branch_may_be_withdrawn(stage: Stage, account: int) -> None:
    work = stage.tcp().begin()
    work.run(TAKE.format(account))
    branch = work.announce("payments")
    path = f"{work.path}/branches/{branch['n']}"
    with psycopg.connect(stage.databases["payments"], autocommit=True) as connection:
        connection.execute(branch["begin"])
        answer = work.client.delete(path)
        assert (answer.status_code, answer.json()["name"]) == (409, "BranchInUse")
        connection.execute("rollback")
    answer = work.client.delete(path)
    assert (answer.status_code, answer.json()) == (200, {"n": branch["n"], "was_prepared": False})
    assert work.client.delete(path).status_code == 404
    other = work.announce("payments")
    assert other["n"] > branch["n"]
    prepare(stage.databases["payments"], other, GIVE.format(account))
    answer = work.client.delete(f"{work.path}/branches/{other['n']}")
    assert answer.json()["was_prepared"] is True
    assert work.commit().status_code == 200
    for late in (branch, other):  # a COMMIT is about the branches that are recorded with it
        prepare(stage.databases["payments"], late, GIVE.format(account))
    eventually_none_prepared(stage.databases["payments"])
    assert balances(stage, account) == (90, 100)


def test_the_same_name_on_another_transaction_is_not_committed(stage: Stage, account: int) -> None:
    """Between vote and commit the service ends its branch, and prepares another one of that name."""
    work = stage.tcp().begin()
    branch = work.announce("payments")
    dsn = stage.databases["payments"]
    prepare(dsn, branch, GIVE.format(account))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"rollback prepared '{branch['gid']}'".encode())
    answer = work.commit()
    assert answer.json()["outcome"] == "aborted"


def test_a_branch_of_another_role_is_an_impostor(stage: Stage, account: int) -> None:
    dsn = stage.databases["payments"]
    thief = f"thief_{secrets.token_hex(4)}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(f"create role {thief} login password 'x'".encode())
        try:
            work = stage.tcp().begin()
            branch = work.announce("payments")
            admin.execute(f"set session authorization {thief}".encode())
            admin.execute(branch["begin"])
            admin.execute("select pg_current_xact_id()")
            admin.execute(branch["prepare"])
            admin.execute("reset session authorization")
            told = work.commit().json()
            assert f"was prepared by role '{thief}'" in told["reason"]
            count = admin.execute("select count(*) from pg_prepared_xacts").fetchone()
            assert count == (1,), "an impostor is not ours to end"
        finally:
            admin.execute("reset session authorization")
            admin.execute(f"rollback prepared '{branch['gid']}'".encode())
            admin.execute(f"drop role {thief}".encode())


def test_a_transaction_without_a_branch_is_not_committed(stage: Stage) -> None:
    """Nothing would be recorded, and nobody could be told the same later."""
    work = stage.tcp().begin()
    assert work.commit().json()["name"] == "NothingToCommit"
    assert work.rollback().status_code == 200


def test_who_asks_twice_at_once_gets_one_commit(stage: Stage, account: int) -> None:
    work = stage.tcp().begin()
    work.run(TAKE.format(account))
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(stage.tcp().post(f"{work.path}/commit").status_code))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    assert balances(stage, account)[0] == 90


def test_get_waits_for_the_end(stage: Stage, account: int) -> None:
    work = stage.tcp().begin()
    work.run(TAKE.format(account))
    found: list[str] = []
    watching = threading.Thread(target=lambda: found.append(work.show(wait_s=30)["state"]))
    watching.start()
    time.sleep(0.2)
    assert work.commit().status_code == 200
    watching.join()
    assert found == ["committed"]


@pytest.mark.parametrize("end", ["rollback", "commit"])
def test_a_statement_that_runs_when_its_transaction_ends_says_so(stage: Stage, end: str) -> None:
    """Broken if its client is told that the database is gone, or that somebody cancelled the statement."""
    work = stage.tcp().begin()
    pid = work.run("select pg_backend_pid()")["rows"][0][0]
    found: list[dict[str, object]] = []
    asking = threading.Thread(target=lambda: found.append(work.sql("select pg_sleep(60)").json()))
    asking.start()
    sleeps = f"select count(*) from pg_stat_activity where pid = {pid} and wait_event = 'PgSleep'"
    while not value(stage.databases["orders"], sleeps):
        pass
    assert work.client.post(f"{work.path}/{end}").status_code == (200 if end == "rollback" else 409)
    asking.join()
    assert found[0]["name"] in {"TransactionAborted", "TransactionEnded"}
    if end == "rollback":
        assert found[0]["reason"] == "it was rolled back by its client"


def test_a_failed_statement_aborts(stage: Stage, account: int) -> None:
    work = stage.tcp().begin()
    work.run(TAKE.format(account))
    refused = work.sql("select 1/0")
    told = refused.json()
    assert (refused.status_code, told["name"], told["sqlstate"]) == (422, "StatementFailed", "22012")
    answer = work.commit()
    assert (answer.status_code, answer.json()["outcome"]) == (409, "aborted")
    assert balances(stage, account) == (100, 100)


@pytest.mark.parametrize("protocol", ["2pc", "3pc"])
def test_protocols(stage: Stage, account: int, protocol: str) -> None:
    """Three-phase commit writes its rows before PREPARE: a caller's branch cannot take part."""
    work = stage.tcp().begin(protocol=protocol)
    if protocol == "3pc":
        refused = work.client.post(f"{work.path}/branches", {"participant": "payments"})
        assert (refused.status_code, refused.json()["name"]) == (422, "UsageError")
        assert refused.headers["content-type"] == "application/problem+json"
        assert "three-phase commit" in refused.json()["detail"]
        assert "use 2pc or paxos" in refused.json()["detail"]
        assert (work.show()["state"], "branches" in work.show()) == ("active", False)
        assert work.rollback().status_code == 200
        return
    work.run(TAKE.format(account))
    assert work.commit().status_code == 200


def test_paxos_needs_a_cluster(stage: Stage) -> None:
    answer = stage.tcp().post("/v1/transactions", {"protocol": "paxos"})
    assert (answer.status_code, answer.json()["name"]) == (422, "UsageError")
