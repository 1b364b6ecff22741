"""Every application: a response says success only for what is committed, and failure only for what is not, or
it says that the outcome is not known."""

from __future__ import annotations

import threading

import pytest

from tests.undoubt.integrations.web.client import Client, Reply
from tests.undoubt.integrations.web.shop import Shop

IDLE = """select state from pg_stat_activity
    where datname = current_database() and state like 'idle in transaction%'"""


def test_an_order_is_committed_when_its_response_comes(client: Client, shop: Shop) -> None:
    answered = client("/order/1")
    assert (answered.status, answered.told) == (200, {"placed": 1})
    assert shop.ids() == ([1], [1])


def test_what_aborts_at_its_commit_is_not_answered_200(client: Client, shop: Shop) -> None:
    """The handler returns normally, and PREPARE is refused afterwards."""
    answered = client("/late/1")
    assert (answered.status, answered.outcome) == (409, "aborted")
    assert answered.told["outcome"] == "aborted"
    assert answered.headers["content-type"] == "application/problem+json"
    assert shop.ids() == ([], [])


def test_an_order_commits_by_its_last_agent(last_client: Client, shop: Shop) -> None:
    """Broken if the settings of an application do not reach the transactions of its requests, or a refusal of
    the agent's COMMIT is answered 200. The agent's part of ``late`` is refused at its COMMIT."""
    assert last_client("/late/1").outcome == "aborted"
    assert (shop.ids(), shop.prepared()) == (([], []), [])
    assert last_client("/order/2").status == 200
    assert shop.ids() == ([2], [2])
    assert "after_agent" in shop.seen


@pytest.mark.parametrize(("what", "status"), [("raises", 500), ("refuses", 422), ("unserializable", 500)])
def test_a_failed_request_changes_nothing(client: Client, shop: Shop, what: str, status: int) -> None:
    """``unserializable``: the handler has succeeded, and its response cannot be made."""
    answered = client(f"/{what}/1")
    assert (answered.status, answered.outcome) == (status, None)
    assert shop.ids() == ([], [])
    assert shop.prepared() == []


@pytest.mark.parametrize(("what", "status"), [("handled", 200), ("redirects", 303)])
def test_an_error_that_is_answered_as_a_success_changes_nothing(
    client: Client, shop: Shop, what: str, status: int
) -> None:
    """A handler that raises half-way would commit the first half, if an exception handler of the application,
    or an exception of the framework that redirects, makes a response below 400 of it."""
    answered = client(f"/{what}/1")
    assert (answered.status, answered.outcome) == (status, "aborted")
    assert (shop.ids(), shop.prepared()) == (([], []), [])
    assert client("/order/2").outcome is None
    assert shop.ids() == ([2], [2])


def test_an_error_after_a_commit_of_its_own_that_is_answered_as_a_success(client: Client, shop: Shop) -> None:
    answered = client("/commits-handled/1")
    assert answered.status == 200
    assert answered.outcome in {"committed", "unknown"}
    assert shop.ids() == ([1], [1])


def test_a_swallowed_error_of_sql_is_not_answered_200(client: Client, shop: Shop) -> None:
    answered = client("/swallows/1")
    assert (answered.status, answered.outcome) == (409, "aborted")
    assert shop.ids() == ([], [])


def test_a_streamed_body_comes_after_the_commit(client: Client, shop: Shop) -> None:
    """And cannot write in the transaction that the status has spoken of."""
    answered = client("/stream/1")
    assert (answered.status, answered.body) == (200, b"UsageError")
    assert shop.ids() == ([1], [1])


def test_background_tasks_run_only_after_a_commit(client: Client, shop: Shop) -> None:
    assert client("/background/1").status == 200
    assert client("/background-late/2").outcome == "aborted"
    assert shop.after == [1]
    assert shop.ids() == ([1], [1])


@pytest.mark.parametrize("path", ["/commits/1", "/commits-422/1"])
def test_a_failure_after_a_commit_of_its_own_says_so(client: Client, shop: Shop, path: str) -> None:
    """A client that reads 500 would send the order again."""
    answered = client(path)
    assert answered.status in {422, 500}
    assert answered.outcome in {"committed", "unknown"}
    assert answered.headers["Undoubt-Transaction-Id"]
    assert shop.ids() == ([1], [1])


def test_a_handler_that_rolls_back_by_itself_says_so(client: Client, shop: Shop) -> None:
    """Its answer is its own. A client that reads only the status would believe that the order is placed."""
    answered = client("/rolls-back/1")
    assert (answered.status, answered.told, answered.outcome) == (200, {"placed": 1}, "aborted")
    assert answered.headers["Undoubt-Transaction-Id"]
    assert client("/order/2").outcome is None
    assert shop.ids() == ([2], [2])


def test_a_request_without_work_begins_nothing(
    client: Client, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("undoubt.coordinator.coordinator.Coordinator.transaction")
    assert client("/idle").status == 200
    assert client("/order/1").status == 500


def test_requests_do_not_share_a_transaction(client: Client, shop: Shop) -> None:
    """Connections are used again, and what failed before leaves nothing behind."""
    paths = ["/order/1", "/late/2", "/raises/3", "/swallows/4", "/refuses/5", "/order/6", "/order/7"]
    statuses = [client(path).status for path in paths]
    assert statuses == [200, 409, 500, 409, 422, 200, 200]
    assert shop.ids() == ([1, 6, 7], [1, 6, 7])
    assert shop.prepared() == []
    for name in shop.dsns:
        assert shop.rows(name, IDLE) == []


def test_a_heuristic_outcome_is_not_answered_as_an_abort(client: Client, shop: Shop, few_looks: None) -> None:
    shop.roll_back_at = "after_decide"
    answered = client("/order/1")
    assert (answered.status, answered.outcome) == (500, "heuristic")
    assert shop.ids() == ([1], [])


def test_an_unknown_outcome_is_answered_as_unknown(hasty: Shop, hasty_client: Client) -> None:
    """The ledger does not answer within the timeout; the commit goes on and succeeds."""
    hasty.hold_at = "before_decide"
    answered = hasty_client("/order/1")
    assert (answered.status, answered.outcome) == (500, "unknown")
    assert answered.told["transaction"] == answered.headers["Undoubt-Transaction-Id"]
    assert hasty.ids() == ([], [])
    hasty.go_on.set()
    hasty.wait_for(lambda: hasty.ids() == ([1], [1]))


def test_the_response_waits_for_the_commit(client: Client, shop: Shop) -> None:
    """Nothing is answered between PREPARE and the decision."""
    shop.hold_at = "before_decide"
    got: list[Reply] = []
    thread = threading.Thread(target=lambda: got.append(client("/order/1")))
    thread.start()
    shop.held.wait(30)
    assert (got, shop.ids()) == ([], ([], []))
    shop.go_on.set()
    thread.join(30)
    assert [each.status for each in got] == [200]
