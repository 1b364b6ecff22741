"""A block over several databases commits in all or in none, and Django is as it was afterwards."""

from __future__ import annotations

import asyncio
import unittest
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
from django.conf import settings
from django.db import IntegrityError, connections, transaction
from django.test import AsyncClient, Client, TestCase, TransactionTestCase

import undoubt
import undoubt.sync
from tests.undoubt.integrations.django.models import Order, Payment
from tests.undoubt.integrations.django.urls import BOTH, write
from tests.undoubt.integrations.web.shop import NOBODY, Shop
from undoubt.errors import UsageError
from undoubt.integrations.django import atomic


def usable() -> bool:
    """Whether both connections are in autocommit, outside of any block, and answer."""
    for alias in BOTH:
        connection = connections[alias]
        if connection.in_atomic_block or not connection.get_autocommit():
            return False
        with connection.cursor() as cursor:
            cursor.execute("select current_setting('application_name'), pg_current_xact_id_if_assigned()")
            name, xid = cursor.fetchone()
            if name.startswith("undoubt") or xid is not None:
                return False
    return True


def pids() -> list[int]:
    found = []
    for alias in BOTH:
        with connections[alias].cursor() as cursor:
            cursor.execute("select pg_backend_pid()")
            found.append(cursor.fetchone()[0])
    return found


def test_a_block_commits_in_both_databases(shop: Shop) -> None:
    with atomic(using=BOTH):
        write(1)
        assert shop.ids() == ([], [])
    assert shop.ids() == ([1], [1])
    assert "before_decide" in shop.seen
    assert usable()


@pytest.mark.parametrize("agent", BOTH)
def test_a_block_commits_by_its_last_agent(shop: Shop, agent: str) -> None:
    """Broken if Django's own connection cannot be the agent, or is not usable afterwards. The error of the
    deferred constraint comes from PREPARE, or from the agent's COMMIT."""
    shop.make_last_agent(agent)
    for account in (NOBODY, 1):
        expected = nullcontext() if account == 1 else pytest.raises(undoubt.TransactionAborted)
        with expected, atomic(using=BOTH, protocol="last", agent=agent):
            write(account, account)
    assert (shop.ids(), shop.prepared()) == (([1], [1]), [])
    assert "after_agent" in shop.seen
    assert usable()


def test_a_connection_is_compared_with_each_participant(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a connection that has been a branch of its own participant is lent to the one of another
    database."""
    with atomic(using=BOTH):
        write(1)
    swapped = {"orders": "payments", "payments": "orders"}
    monkeypatch.setitem(settings.UNDOUBT, "participants", swapped)
    with pytest.raises(UsageError, match="leads to"), atomic(using=BOTH):
        write(2)
    monkeypatch.delitem(settings.UNDOUBT, "participants")
    with atomic(using=BOTH):
        write(3)
    assert shop.ids() == ([1, 3], [1, 3])


def test_connections_of_django_are_used_again(shop: Shop) -> None:
    """``CONN_MAX_AGE`` would be of no use if every block opened connections."""
    before = pids()
    for number in range(3):
        with atomic(using=BOTH):
            write(number)
        with pytest.raises(undoubt.TransactionAborted), atomic(using=BOTH):
            write(number + 10, NOBODY)
        with pytest.raises(ZeroDivisionError), atomic(using=BOTH):
            write(number + 20)
            raise ZeroDivisionError
    assert pids() == before
    assert shop.ids() == ([0, 1, 2], [0, 1, 2])
    assert usable()


def test_what_prepare_refuses_is_in_neither(shop: Shop) -> None:
    with pytest.raises(undoubt.TransactionAborted), atomic(using=BOTH):
        write(1, NOBODY)
    assert (shop.ids(), shop.prepared()) == (([], []), [])
    assert usable()


def test_an_error_of_the_orm_rolls_both_back(shop: Shop) -> None:
    with pytest.raises(IntegrityError), atomic(using=BOTH):
        write(1)
        Payment.objects.using("payments").create(id=1, account=1)
    assert shop.ids() == ([], [])
    assert usable()


def test_a_swallowed_error_commits_nothing(shop: Shop) -> None:
    with pytest.raises(undoubt.TransactionAborted), atomic(using=BOTH):
        write(1)
        with pytest.raises(IntegrityError):
            Payment.objects.using("payments").create(id=1, account=1)
    assert shop.ids() == ([], [])


def test_blocks_of_django_inside_are_savepoints(shop: Shop) -> None:
    with atomic(using=BOTH):
        write(1)
        with pytest.raises(IntegrityError), transaction.atomic(using="payments"):
            Payment.objects.using("payments").create(id=1, account=1)
        with pytest.raises(ZeroDivisionError), atomic(using=BOTH):
            write(2)
            raise ZeroDivisionError
        with atomic(using=["orders"]):
            Order.objects.using("orders").create(id=3)
    assert shop.ids() == ([1, 3], [1])
    assert usable()


def test_a_block_that_is_marked_for_rollback_says_so(shop: Shop) -> None:
    """Django leaves such a block without an error, and its caller would believe that it has committed."""
    with pytest.raises(undoubt.TransactionAborted, match="marked for rollback"), atomic(using=BOTH):
        write(1)
        transaction.set_rollback(True, using="orders")
    assert shop.ids() == ([], [])
    assert usable()


def test_functions_on_commit_are_called_after_the_commit_of_all(shop: Shop) -> None:
    found: list[Any] = []
    with atomic(using=BOTH):
        write(1)
        transaction.on_commit(lambda: found.append((shop.ids(), usable())), using="orders")
        transaction.on_commit(lambda: found.append("payments"), using="payments")
        assert found == []
    assert found == [(([1], [1]), True), "payments"]
    with pytest.raises(undoubt.TransactionAborted), atomic(using=BOTH):
        write(2, NOBODY)
        transaction.on_commit(lambda: found.append("never"), using="orders")
    assert len(found) == 2


def test_a_function_on_commit_that_fails_does_not_hide_the_commit(shop: Shop) -> None:
    with pytest.raises(ZeroDivisionError) as raised, atomic(using=BOTH):
        write(1)
        transaction.on_commit(lambda: 1 / 0, using="orders")
    assert "has committed" in raised.value.__notes__[0]
    assert shop.ids() == ([1], [1])


def test_a_timeout_within_a_statement_is_told_as_one(shop: Shop) -> None:
    """Broken if the caller reads Django's error about a cancelled statement, and no reason."""
    with pytest.raises(undoubt.TransactionAborted, match="timeout"), atomic(using=BOTH, timeout=0.5):
        write(1)
        with connections["orders"].cursor() as cursor:
            cursor.execute("select pg_sleep(600)")
    assert shop.ids() == ([], [])
    assert usable()


def test_a_cause_that_another_process_has_recorded_is_told(shop: Shop) -> None:
    """Broken if a deadlock that another process ends is an error about a cancelled statement."""
    coordinator: undoubt.sync.Coordinator = settings.UNDOUBT["coordinator"]
    with pytest.raises(undoubt.TransactionAborted, match="as recorded"), atomic(using=BOTH):
        write(1)
        [txid] = coordinator.engine.live
        coordinator.portal.call(coordinator.engine.ledger.doom, txid, "as recorded")
        with connections["orders"].cursor() as cursor:
            cursor.execute(
                "do $$ begin perform pg_cancel_backend(pg_backend_pid()); perform pg_sleep(600); end $$"
            )
    assert shop.ids() == ([], [])
    assert usable()


def test_an_unknown_outcome_is_raised_as_one(shop: Shop, hasty: None) -> None:
    shop.hold_at = "before_decide"
    with pytest.raises(undoubt.OutcomeUnknown), atomic(using=BOTH, timeout=1.0):
        write(1)
    shop.go_on.set()
    shop.wait_for(lambda: shop.ids() == ([1], [1]))
    assert usable()


def test_a_heuristic_outcome_is_raised_as_one(shop: Shop, few_looks: None) -> None:
    shop.roll_back_at = "after_decide"
    with pytest.raises(undoubt.HeuristicOutcome), atomic(using=BOTH):
        write(1)
    assert shop.ids() == ([1], [])
    assert usable()


def test_a_connection_that_is_lost_aborts_both(shop: Shop) -> None:
    with pytest.raises(Exception, match=r"terminat|closed|lost"), atomic(using=BOTH):
        write(1)
        for (pid,) in shop.rows(
            "payments", "select pid from pg_stat_activity where state = 'idle in transaction'"
        ):
            shop.rows("payments", f"select pg_terminate_backend({pid}, 5000)")
        Payment.objects.using("payments").count()
    assert (shop.ids(), shop.prepared()) == (([], []), [])
    assert usable()


def test_a_block_has_to_be_the_outermost(shop: Shop) -> None:
    with transaction.atomic(using="orders"), pytest.raises(UsageError, match="ATOMIC_REQUESTS"), atomic(BOTH):
        pass
    with (
        atomic(using=["orders"]),
        pytest.raises(UsageError, match="name it there"),
        atomic(using=["payments"]),
    ):
        pass
    for wrong in ("orders", lambda: None):
        with pytest.raises(UsageError, match="takes a list"):
            atomic(using=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least one"):
        atomic(using=[])
    settings.UNDOUBT["participants"] = {"payments": "orders"}
    with pytest.raises(UsageError, match="'orders' and 'payments' are one participant"), atomic(BOTH):
        pass
    assert usable()


def test_a_database_of_another_participant_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch that recovery looks for elsewhere would stay in doubt."""
    from django.conf import settings  # noqa: PLC0415 - of this test

    crossed = {**settings.UNDOUBT, "participants": {"orders": "payments", "payments": "orders"}}
    monkeypatch.setattr(settings, "UNDOUBT", crossed)
    with pytest.raises(undoubt.UndoubtError, match="database"), atomic(using=BOTH):
        write(1)
    assert usable()


@pytest.mark.parametrize(
    ("path", "status", "outcome", "ids"),
    [
        ("/order/1", 200, None, ([1], [1])),
        ("/coroutine/1", 200, None, ([1], [1])),
        ("/stream/1", 200, None, ([1], [1])),
        ("/late/1", 409, "aborted", ([], [])),
        ("/swallows/1", 409, "aborted", ([], [])),
        ("/raises/1", 500, None, ([], [])),
    ],
)
def test_a_response_says_what_is_committed(
    shop: Shop, path: str, status: int, outcome: str | None, ids: Any
) -> None:
    answered = Client(raise_request_exception=False).post(path)
    assert (answered.status_code, answered.headers.get("Undoubt-Outcome")) == (status, outcome)
    assert shop.ids() == ids


def test_an_unknown_outcome_is_answered_as_unknown(shop: Shop, hasty: None) -> None:
    shop.hold_at = "before_decide"
    answered = Client().post("/hasty/1")
    assert (answered.status_code, answered.headers["Undoubt-Outcome"]) == (500, "unknown")
    shop.go_on.set()
    shop.wait_for(lambda: shop.ids() == ([1], [1]))


def test_a_coroutine_of_django_gets_there_by_a_thread(shop: Shop) -> None:
    async def ask() -> int:
        return int((await AsyncClient().post("/coroutine/1")).status_code)

    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(ask()) == 200
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    assert shop.ids() == ([1], [1])


class _Rolled(TestCase):  # type: ignore[misc]
    __test__ = False  # it is run by a test below
    databases = {"orders", "payments"}  # noqa: RUF012 - as Django has it

    def runTest(self) -> None:
        with self.captureOnCommitCallbacks(using="orders", execute=True) as found, atomic(using=BOTH):
            write(1)
            transaction.on_commit(lambda: None, using="orders")
        assert len(found) == 1
        with pytest.raises(ZeroDivisionError), atomic(using=BOTH):
            write(2)
            raise ZeroDivisionError
        assert [each.id for each in Order.objects.using("orders").all()] == [1]


class _Committed(TransactionTestCase):  # type: ignore[misc]
    __test__ = False
    databases = {"orders", "payments"}  # noqa: RUF012 - as Django has it
    seen: ClassVar[list[int]] = []

    def runTest(self) -> None:
        with atomic(using=BOTH):
            write(1)
        self.seen.extend(each.id for each in Payment.objects.using("payments").all())

    def _fixture_teardown(self) -> None:
        pass  # its flush needs Django's own tables


def told_by(case: unittest.TestCase) -> Any:
    """Errors, failures and the number of tests, run as a runner runs them: with the methods of the class."""
    result = unittest.TestResult()
    unittest.TestSuite([case]).run(result)
    return result.errors, result.failures, result.testsRun


def test_its_testcase_rolls_everything_back(shop: Shop) -> None:
    """The block is a savepoint there: a commit would leave its rows to the next test."""
    assert told_by(_Rolled()) == ([], [], 1)
    assert shop.ids() == ([], [])
    assert "before_prepare" not in shop.seen


def test_its_transactiontestcase_commits(shop: Shop) -> None:
    assert told_by(_Committed()) == ([], [], 1)
    assert shop.ids() == ([1], [1])
    assert _Committed.seen == [1]


def test_settings_of_django_hold_in_the_block(shop: Shop) -> None:
    """The ORM reads what Django's own connection gives it: time zones, adapters, cursors."""
    with atomic(using=BOTH), connections["orders"].cursor() as cursor:
        cursor.execute("show timezone")
        zone = cursor.fetchone()[0]
        cursor.execute("select %s::jsonb", ['{"a": 1}'])
        assert cursor.fetchone() == ('{"a": 1}',)  # Django's adapter leaves JSON to its fields
    with connections["orders"].cursor() as cursor:
        cursor.execute("show timezone")
        assert cursor.fetchone()[0] == zone


def test_functions_that_do_nothing_when_they_are_called(shop: Shop) -> None:
    """Broken if a decorated function runs after its block has committed: what it writes is in no
    transaction."""

    async def coroutine() -> None:
        write(1)

    def generates() -> Iterator[None]:
        write(1)
        yield

    for function in (coroutine, generates):
        with pytest.raises(UsageError, match=f"@atomic .*{function.__name__}"):
            atomic(using=BOTH)(function)
        decorated = atomic(using=BOTH)(lambda lazy=function: lazy())
        with pytest.raises(UsageError, match="@atomic calls its function"):
            decorated()
    assert usable()
    assert shop.ids() == ([], [])
