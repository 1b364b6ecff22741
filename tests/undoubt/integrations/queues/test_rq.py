"""A job of RQ succeeds after its commit, and its work is done once, whatever becomes of its worker."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from rq import Queue, Repeat, Retry, SimpleWorker, Worker
from rq.job import Job

import undoubt.sync
from tests.undoubt.integrations.queues import jobs
from tests.undoubt.integrations.queues.jobs import (
    called_twice,
    dies_after_its_commit,
    nested,
    next_order,
    ordinary,
    place,
)
from tests.undoubt.integrations.web.client import act_in_thread
from tests.undoubt.integrations.web.shop import Shop
from undoubt.errors import UsageError
from undoubt.integrations.rq import transactional


@pytest.fixture
def queue(shop: Shop, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    file = tmp_path / "undoubt.toml"
    lines = ["[ledger]", f"url = {json.dumps(shop.settings['ledger']['url'])}"]
    for name, dsn in shop.dsns.items():
        lines += [f"[participants.{name}]", f"dsn = {json.dumps(dsn)}"]
    file.write_text("\n".join(lines))
    monkeypatch.setenv("UNDOUBT_CONFIG", str(file))
    connection = redis.Redis.from_url(redis_url)
    queue = Queue(tmp_path.name, connection=connection)
    yield queue
    connection.close()


def work(queue: Queue) -> None:
    """By RQ's worker, which forks for each job."""
    with kept_handlers():
        Worker([queue], connection=queue.connection).work(burst=True)


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():  # the worker keeps them for itself
            signal.signal(number, handler)


def run(queue: Queue, job: Job) -> Job:
    work(queue)
    return Job.fetch(job.id, connection=queue.connection)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_job_succeeds_after_its_commit(queue: Queue, shop: Shop, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    done = run(queue, queue.enqueue(place, "order", 1, log))
    assert (done.is_finished, done.return_value()) == (True, 1)
    assert shop.ids() == ([1], [1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("what", ["late", "swallows", "raises"])
def test_a_job_that_does_not_commit_fails(queue: Queue, shop: Shop, tmp_path: Path, what: str) -> None:
    done = run(queue, queue.enqueue(place, what, 1, str(tmp_path / "log")))
    assert done.is_failed
    assert (shop.ids(), shop.prepared()) == (([], []), [])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_job_whose_worker_dies_after_the_commit_is_done_once(
    queue: Queue, shop: Shop, tmp_path: Path
) -> None:
    """RQ runs it again, and the key gives the result of the first run."""
    log = tmp_path / "log"
    sent = queue.enqueue(dies_after_its_commit, "order", 1, str(log), retry=Retry(max=3))
    done = run(queue, sent)
    assert (done.is_finished, done.return_value()) == (True, 1)
    assert log.read_text() == "1\n"
    assert shop.ids() == ([1], [1])


def test_a_job_of_unknown_outcome_is_done_once(
    queue: Queue, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails with ``OutcomeUnknown``, then with ``KeyInUse``; a later run has the result of
    the one that has committed, and does nothing."""
    monkeypatch.setattr("undoubt.coordinator.transaction.VOTING_GRACE_S", 0.0)
    log = tmp_path / "log"

    def ran(job: Job) -> Job:
        SimpleWorker([queue], connection=queue.connection).work(burst=True)
        return Job.fetch(job.id, connection=queue.connection)

    with kept_handlers(), undoubt.sync.connect(shop.settings, observe=shop.observe, recover=False) as opened:
        monkeypatch.setattr(jobs, "hasty", transactional(coordinator=opened, timeout=1.0)(jobs.hasty))
        shop.hold_at = "before_decide"
        job = ran(queue.enqueue(f"{jobs.__name__}.hasty", 1, str(log)))
        assert job.is_failed
        assert "OutcomeUnknown" in told(job)
        job.requeue()
        job = ran(job)
        assert "KeyInUse" in told(job)
        shop.go_on.set()
        shop.wait_for(lambda: shop.ids() == ([1], [1]))
        job.requeue()
        job = ran(job)
        assert (job.is_finished, job.return_value()) == (True, 1)
    assert log.read_text() == "1\n"
    assert shop.ids() == ([1], [1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_functions_that_a_job_calls_have_no_key(queue: Queue, shop: Shop, tmp_path: Path) -> None:
    """With the key of the job, only the first of their calls would run, and the others would return its
    result."""
    done = run(queue, queue.enqueue(ordinary, str(tmp_path / "log"), 1, 2, 3))
    assert (done.is_finished, done.return_value()) == (True, [1, 2, 3])
    assert shop.ids() == ([1, 2, 3], [1, 2, 3])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_call_inside_a_transaction_is_refused(queue: Queue, shop: Shop, tmp_path: Path) -> None:
    """The inner one would commit under the key of the outer one, whose work would be lost in the next run."""
    done = run(queue, queue.enqueue(nested, 1, str(tmp_path / "log"), retry=Retry(max=1)))
    assert done.is_failed
    assert "place() was called inside the transaction of nested()" in told(done)
    assert (shop.ids(), shop.prepared()) == (([], []), [])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_function_of_a_job_is_called_once(queue: Queue, shop: Shop) -> None:
    """The second call would return the result of the first, and do nothing."""
    done = run(queue, queue.enqueue(called_twice, 1))
    assert done.is_failed
    assert "was called twice" in told(done)
    assert shop.ids() == ([1], [1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_each_repetition_of_a_job_is_done(queue: Queue, shop: Shop) -> None:
    """As is a job whose id was used before. With a key of the id alone only the first run would do its
    work."""
    work_of = run(queue, queue.enqueue(next_order, repeat=Repeat(times=2)))
    assert (work_of.is_finished, shop.ids()) == (True, ([1, 2, 3], [1, 2, 3]))
    for _ in range(2):
        assert run(queue, queue.enqueue(next_order, job_id=f"nightly-{work_of.id}")).is_finished
    assert shop.ids() == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])


def told(job: Job) -> str:
    """The error with which its last run has failed."""
    result = job.latest_result()
    assert result is not None
    return str(result.exc_string)


def test_outside_of_a_worker_it_is_a_transaction(shop: Shop) -> None:
    with undoubt.sync.connect(shop.settings) as coordinator:

        @transactional(coordinator=coordinator)
        def job(tx: undoubt.sync.Transaction, what: str, number: int) -> int:
            act_in_thread(tx, what, number)
            return number

        assert job("order", 1) == 1
        with pytest.raises(undoubt.TransactionAborted):
            job("late", 2)
    assert shop.ids() == ([1], [1])


def test_functions_that_do_nothing_when_they_are_called(shop: Shop) -> None:
    """Broken if a job succeeds of whose function nothing has run."""
    with undoubt.sync.connect(shop.settings) as coordinator:
        transactional_here = transactional(coordinator=coordinator)

        async def coroutine(tx: undoubt.sync.Transaction) -> None: ...

        def generates(tx: undoubt.sync.Transaction) -> Iterator[None]:
            yield

        for function in (coroutine, generates):
            with pytest.raises(UsageError, match=f"@transactional .*{function.__name__}"):
                transactional_here(function)
            job = transactional_here(lambda tx, lazy=function: lazy(tx))
            with pytest.raises(UsageError, match="@transactional calls its function"):
                job()
