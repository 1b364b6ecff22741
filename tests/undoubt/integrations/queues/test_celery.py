"""A task's message is acknowledged after its commit, and its work is done once."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.signals import task_prerun

import undoubt.sync
from tests.undoubt.integrations.web.client import Failed, account_of, act_in_thread
from tests.undoubt.integrations.web.shop import Shop, statements
from undoubt.errors import UsageError
from undoubt.integrations.celery import TransactionTask, coordinator, transaction

RESULT_S = 60.0
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # kombu's, of redis


@pytest.fixture
def root_level() -> Iterator[None]:
    """A worker sets the level of the root logger, and leaves it so."""
    before = logging.root.level
    yield
    logging.root.setLevel(before)


@pytest.fixture
def app(root_level: None, shop: Shop, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """With a worker of Celery's own, in a thread, and a real broker."""
    monkeypatch.setattr("undoubt.coordinator.transaction.VOTING_GRACE_S", 0.0)
    app = Celery("shop", broker=redis_url, backend="cache+memory://")
    app.conf.update(
        task_default_queue=uuid.uuid4().hex,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        redis_socket_timeout=5,
    )

    @app.task(base=TransactionTask, shared=False, name="place")  # type: ignore[untyped-decorator]
    def place(what: str, number: int) -> int:
        shop.after.append(number)
        act_in_thread(transaction(), what, number)
        return number

    @app.task(base=TransactionTask, shared=False, name="hasty")  # type: ignore[untyped-decorator]
    def hasty(number: int) -> int:
        shop.after.append(number)
        act_in_thread(transaction(), "order", number)
        return number

    hasty.undoubt_timeout = 1.0

    retried = {"autoretry_for": (undoubt.TransactionAborted,), "bind": True}

    @app.task(base=TransactionTask, shared=False, name="again", **retried)  # type: ignore[untyped-decorator]
    def again(self: Any, number: int) -> int:
        shop.after.append(number)
        act_in_thread(transaction(), "late" if self.request.retries == 0 else "order", number)
        return number

    again.default_retry_delay = 0
    make_callers(app, shop)

    def noted(**_: Any) -> None:
        shop.seen.append("run")

    task_prerun.connect(noted)

    with undoubt.sync.connect(shop.settings, observe=shop.observe, recover=False) as opened:
        app.conf.undoubt = opened
        with start_worker(app, pool="threads", concurrency=1, perform_ping_check=False, loglevel="ERROR"):
            yield app
    app.close()


def make_callers(app: Celery, shop: Shop) -> None:
    """Tasks that call tasks directly."""

    @app.task(shared=False, name="ordinary")  # type: ignore[untyped-decorator]
    def ordinary(*numbers: int) -> list[int]:
        return [app.tasks["place"]("order", number) for number in numbers]

    @app.task(base=TransactionTask, shared=False, name="nested")  # type: ignore[untyped-decorator]
    def nested(inner: str, number: int) -> int:
        act_in_thread(transaction(), "order", number)
        if number < 100:
            app.tasks[inner](inner if inner == "nested" else "order", number + 100)
        return number

    @app.task(base=TransactionTask, shared=False, name="applies")  # type: ignore[untyped-decorator]
    def applies(number: int) -> int:
        app.tasks["place"].apply(("order", number + 100)).get()
        act_in_thread(transaction(), "order", number)
        return number


def send(app: Celery, name: str, *arguments: Any, task_id: str | None = None) -> Any:
    return app.tasks[name].apply_async(arguments, task_id=task_id)


def unacknowledged(app: Celery) -> int:
    """The number of messages that Redis holds for workers; kombu keeps them in a hash."""
    with app.connection_for_read() as connection:
        found: int = connection.default_channel.client.hlen("unacked")
        return found


def test_a_task_succeeds_after_its_commit(app: Celery, shop: Shop) -> None:
    assert send(app, "place", "order", 1).get(RESULT_S) == 1
    assert shop.ids() == ([1], [1])


@pytest.mark.parametrize("what", ["late", "swallows"])
def test_a_task_that_aborts_at_its_commit_fails(app: Celery, shop: Shop, what: str) -> None:
    """Its function has returned a result."""
    with pytest.raises(Exception, match="aborted"):
        send(app, "place", what, 1).get(RESULT_S)
    assert shop.ids() == ([], [])


def test_a_task_that_raises_changes_nothing(app: Celery, shop: Shop) -> None:
    with pytest.raises(Failed):
        send(app, "place", "raises", 1).get(RESULT_S)
    assert (shop.ids(), shop.prepared()) == (([], []), [])


def test_a_message_is_not_acknowledged_before_the_commit(app: Celery, shop: Shop) -> None:
    """A worker that dies between both leaves it to another one."""
    shop.hold_at = "before_decide"
    sent = send(app, "place", "order", 1)
    shop.held.wait(RESULT_S)
    assert not sent.ready()
    assert unacknowledged(app) == 1
    shop.go_on.set()
    assert sent.get(RESULT_S) == 1
    shop.wait_for(lambda: unacknowledged(app) == 0)
    assert shop.ids() == ([1], [1])


def test_a_message_that_comes_twice_is_done_once(app: Celery, shop: Shop) -> None:
    """As after the death of a worker that has committed and not acknowledged."""
    first = str(uuid.uuid4())
    assert send(app, "place", "order", 1, task_id=first).get(RESULT_S) == 1
    app.backend.delete(app.backend.get_key_for_task(first))
    assert send(app, "place", "order", 1, task_id=first).get(RESULT_S) == 1
    assert (shop.after, shop.ids()) == ([1], ([1], [1]))


def test_a_task_of_unknown_outcome_finds_out(app: Celery, shop: Shop) -> None:
    """It is neither a failure nor run twice: its message comes again, and the key tells."""
    shop.hold_at = "before_decide"
    sent = send(app, "hasty", 1)
    shop.held.wait(RESULT_S)
    shop.wait_for(lambda: shop.seen.count("run") >= 3)
    assert not sent.ready()
    shop.go_on.set()
    assert sent.get(RESULT_S) == 1
    assert (shop.after, shop.ids()) == ([1], ([1], [1]))


def test_an_abort_can_be_retried_by_celery(app: Celery, shop: Shop) -> None:
    """``autoretry_for`` is only for what the function raises; here it has returned."""
    assert send(app, "again", 1).get(RESULT_S) == 1
    assert (shop.after, shop.ids()) == ([1, 1], ([1], [1]))


def test_a_task_that_is_called_directly_commits_too(app: Celery, shop: Shop) -> None:
    assert app.tasks["place"]("order", 1) == 1
    with pytest.raises(undoubt.TransactionAborted):
        app.tasks["place"]("late", 2)
    assert shop.ids() == ([1], [1])
    with pytest.raises(UsageError, match="no task of undoubt"):
        transaction()


def test_direct_calls_with_keys_of_the_application_are_done_each(app: Celery, shop: Shop) -> None:
    """They have no message, so that they are not the second call for one."""

    class Keyed(TransactionTask):
        abstract = True

        def undoubt_key(self) -> str:
            return f"run {len(shop.after)}"

    @app.task(base=Keyed, shared=False)  # type: ignore[untyped-decorator]
    def keyed(number: int) -> None:
        act_in_thread(transaction(), "order", number)
        shop.after.append(number)

    for number in (1, 2):
        keyed(number)
    assert shop.ids() == ([1, 2], [1, 2])


@pytest.mark.parametrize("inner", ["place", "nested"])
def test_a_direct_call_inside_a_transaction_is_refused(app: Celery, shop: Shop, inner: str) -> None:
    """``nested``: it calls itself. The inner call would wait for the key of the outer one and then commit
    under it; or it would commit alone, although the outer one fails."""
    with pytest.raises(UsageError, match=f"task {inner} was called directly inside .* of task nested"):
        send(app, "nested", inner, 1).get(RESULT_S)
    assert (shop.ids(), shop.prepared()) == (([], []), [])


def test_tasks_that_an_ordinary_task_calls_are_done_each(app: Celery, shop: Shop) -> None:
    """And one that is run by ``apply()``, as with ``task_always_eager``, is a message of its own."""
    assert send(app, "ordinary", 1, 2).get(RESULT_S) == [1, 2]
    assert send(app, "applies", 3).get(RESULT_S) == 3
    assert shop.ids() == ([1, 2, 3, 103], [1, 2, 3, 103])


def test_a_process_opens_its_coordinator_by_the_settings(shop: Shop) -> None:
    app = Celery("other", broker="memory://")
    app.conf.undoubt = shop.settings
    opened = coordinator(app)
    try:
        assert opened is coordinator(app)
        with opened.transaction() as tx:
            for name, statement in statements(1, account_of("order")).items():
                tx.branch(name).execute(statement.encode())
    finally:
        opened.close()
        app.close()
    assert shop.ids() == ([1], [1])


def test_functions_that_do_nothing_when_they_are_called(app: Celery, shop: Shop) -> None:
    """Broken if a task succeeds of whose function nothing has run."""

    async def coroutine() -> None: ...

    def generates() -> Iterator[None]:
        yield

    for function in (coroutine, generates):
        with pytest.raises(UsageError, match=f"TransactionTask .*{function.__name__}"):
            app.task(base=TransactionTask, shared=False, lazy=False)(function)

        def wrapper(lazy: Any = function) -> Any:
            return lazy()

        name = f"lazy-{function.__name__}"
        task = app.task(base=TransactionTask, shared=False, name=name)(wrapper)
        with pytest.raises(UsageError, match="TransactionTask calls its function"):
            task()
