"""Two sidecars on one ledger: a client asks the second one about what it has begun at the first."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

from tests.undoubt.sidecar.pair import Pair
from tests.undoubt.sidecar.stage import Client, Work, eventually_none_prepared, prepare

TAKE = "update account set balance = balance - 10 where id = {}"
GIVE = "update account set balance = balance + 10 where id = {}"


def begun(pair: Pair, account: int) -> tuple[Work, Work]:
    """A transaction with a branch in each database, as both sidecars show it to its client."""
    work = pair.a.tcp("shop").begin()
    work.run(TAKE.format(account))
    prepare(pair.databases["payments"], work.announce("payments"), GIVE.format(account))
    return work, Work(pair.b.tcp("shop"), work.id)


def test_a_commit_at_another_sidecar_reaches_the_owner(pair: Pair) -> None:
    account = pair.account()
    work, there = begun(pair, account)
    shown = there.show()
    assert (shown["state"], len(shown["branches"])) == ("active", 2)
    answer = there.commit()
    assert (answer.status_code, answer.json()["outcome"]) == (200, "committed"), answer.text
    assert work.show()["state"] == there.show()["state"] == "committed"
    assert pair.balances(account) == [90, 110]


def test_a_rollback_at_another_sidecar_reaches_the_owner(pair: Pair) -> None:
    account = pair.account()
    work, there = begun(pair, account)
    assert there.rollback().status_code == 200
    assert work.show()["state"] == "aborted"
    assert pair.balances(account) == [100, 100]


def test_branches_are_added_at_another_sidecar(pair: Pair) -> None:
    account = pair.account()
    work = pair.a.tcp("shop").begin()
    there = Work(pair.b.tcp("shop"), work.id)
    there.run(TAKE.format(account))
    taken_back = there.announce("payments")
    assert there.client.delete(f"{work.path}/branches/{taken_back['n']}").status_code == 200
    prepare(pair.databases["payments"], there.announce("payments"), GIVE.format(account))
    assert len(work.show()["branches"]) == 2
    assert there.commit().status_code == 200
    assert pair.balances(account) == [90, 110]


def test_another_client_ends_nothing_by_way_of_another_sidecar(pair: Pair) -> None:
    """Broken if the second sidecar asks in its own name, or in one that its client only claims."""
    account = pair.account()
    work, _ = begun(pair, account)
    for name in ("other", "peer"):
        client = pair.b.tcp(name)
        assert client.post(f"{work.path}/commit").status_code == 404
        assert client.post(f"{work.path}/rollback").status_code == 404
        assert client.post(f"{work.path}/branches", {"participant": "orders"}).status_code == 404
    assert work.show()["state"] == "active"
    assert pair.balances(account) == [100, 100]
    work.rollback()


def test_a_client_that_the_owner_does_not_know_is_told_what_the_ledger_says(pair: Pair) -> None:
    """So is one without a token, which the second sidecar cannot show to the owner."""
    account = pair.account()
    work, _ = begun(pair, account)
    for client in (pair.b.tcp("stranger"), pair.b.unix()):
        there = Work(client, work.id)
        assert there.show()["state"] == "unknown"
        answer = there.commit()
        assert (answer.status_code, answer.json()["outcome"]) == (202, "unknown"), answer.text
        answer = there.rollback()
        assert (answer.status_code, answer.json()["outcome"]) == (503, "unknown"), answer.text
        assert client.post(f"{work.path}/branches", {"participant": "orders"}).status_code == 404
    assert work.commit().status_code == 200
    assert Work(pair.b.tcp("stranger"), work.id).show()["state"] == "committed"


def test_what_was_forwarded_is_not_forwarded_again(pair: Pair) -> None:
    """Broken if sidecars that take one another for the owner ask in circles."""
    work, _ = begun(pair, pair.account())
    answer = pair.b.tcp("shop", **{"Undoubt-Forwarded": "1"}).post(f"{work.path}/commit")
    assert answer.status_code == 202, answer.text
    assert work.show()["state"] == "active"
    work.rollback()


def test_a_key_of_a_forwarded_request_is_the_owners_too(pair: Pair) -> None:
    """Broken if a client that repeats its request at the owner adds a second branch."""
    work = pair.a.tcp("shop").begin()
    body, key = {"participant": "payments"}, {"Idempotency_Key": "anywhere"}
    first = pair.b.tcp("shop").post(f"{work.path}/branches", body, **key)
    again = work.client.post(f"{work.path}/branches", body, **key)
    assert first.json() == again.json()
    assert len(work.show()["branches"]) == 1
    work.rollback()


def until_aborted(pair: Pair, client: Client, work: Work) -> None:
    end = time.monotonic() + 60
    while True:
        answer = client.post(f"{work.path}/commit")
        told = answer.json()["outcome"]
        assert (answer.status_code, told) in {(202, "unknown"), (409, "aborted")}, answer.text
        if told == "aborted":
            return
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_commit_of_a_dead_owner_is_unknown_until_its_session_has_expired(pair: Pair) -> None:
    """Broken if somebody guesses: the owner may have decided before it died."""
    account = pair.account()
    work, there = begun(pair, account)
    pair.a.end(signal.SIGKILL)
    answer = there.commit()
    assert (answer.status_code, answer.json()["outcome"]) == (202, "unknown"), answer.text
    answer = there.client.post(f"{work.path}/branches", {"participant": "payments"})
    assert answer.status_code in {404, 503}, answer.text
    until_aborted(pair, there.client, work)
    assert there.rollback().status_code == 200
    for dsn in pair.databases.values():
        eventually_none_prepared(dsn)
    assert pair.balances(account) == [100, 100]


def test_an_owner_that_stands_still_keeps_nobody(pair: Pair) -> None:
    """Broken if a request waits for an answer of the owner although the ledger has the outcome already."""
    account = pair.account()
    work, there = begun(pair, account)
    assert pair.a.process is not None
    pair.a.process.send_signal(signal.SIGSTOP)
    try:
        joined = pair.joined(work)
        with ThreadPoolExecutor() as clients:
            shown = clients.submit(pair.b.tcp("shop").get, work.path)
            committed = clients.submit(there.commit)
            ran = clients.submit(joined.sql, "select 1", participant="payments")
        assert shown.result().json()["state"] == "aborted", shown.result().text
        assert committed.result().json()["outcome"] == "aborted", committed.result().text
        assert ran.result().json()["name"] == "OwnerUnavailable", ran.result().text
    finally:
        pair.a.process.send_signal(signal.SIGCONT)
    assert pair.balances(account) == [100, 100]


def test_the_commit_of_an_owner_that_died_after_it_is_told(pair: Pair) -> None:
    account = pair.account()
    work, there = begun(pair, account)
    assert work.commit().status_code == 200
    pair.a.end(signal.SIGKILL)
    answer = there.commit()
    assert (answer.status_code, answer.json()["outcome"]) == (200, "committed")
    answer = there.rollback()
    assert (answer.status_code, answer.json()["outcome"]) == (409, "committed")
    assert pair.balances(account) == [90, 110]
