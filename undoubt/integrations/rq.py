"""RQ: a job that succeeds after the commit of its transaction, and is done once.

::

    @transactional("undoubt.toml")
    def place(tx, item):
        tx.branch("orders").execute(…)
        tx.branch("payments").execute(…)

    Queue(connection=redis).enqueue(place, "a lamp")

The job's success and its result are stored only after the commit. The transaction has a key: a job that is
run again, because its worker died or its outcome was unknown, does not do its work twice, and its result is
that of the run that committed (within the ledger's retention). A job whose outcome is unknown fails with
``OutcomeUnknown``; ``enqueue(…, retry=Retry(max=3))`` runs it again.

The key is made of the job's id, the time at which ``enqueue`` has made the job, and the number of
repetitions that it has left. So each repetition of ``Repeat``, and each ``enqueue`` with a ``job_id`` that
was used before, is done; a retry or a ``requeue`` has the key of the run before it.

Only the function that the worker calls as the job has the key. If any other code calls it, it is a
transaction without a key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, TypeVar

import undoubt.sync
from undoubt.coordinator.runnable import check_synchronous, checked_result
from undoubt.integrations import validation
from undoubt.integrations.extras import needs
from undoubt.integrations.per_process import Source
from undoubt.participants.bounds import count
from undoubt.participants.errors import UsageError
from undoubt.sync import Coordinator, Transaction

with needs("rq"):
    from rq import get_current_job
    from rq.job import Job

_inside: ContextVar[str] = ContextVar("undoubt_rq_inside", default="")
"""The name of the function in whose transaction the current code runs."""
_done: ContextVar[Job | None] = ContextVar("undoubt_rq_done", default=None)
"""The job whose own function has succeeded."""

T = TypeVar("T")
P = ParamSpec("P")


def transactional(
    source: Source = None,
    *,
    coordinator: Coordinator | None = None,
    retries: int = 5,
    timeout: float | None = None,
) -> Callable[[Callable[Concatenate[Transaction, P], T]], Callable[P, T]]:
    """A decorator of functions of jobs, whose first argument becomes the transaction.

    RQ's worker forks for each job and ends the fork without the interpreter's exit, so each job opens a
    coordinator with ``source`` and closes it. ``coordinator``: one for a worker that does not fork
    (``SimpleWorker``). ``retries`` and ``timeout`` are those of ``coordinator.run``. The result has to be one
    that the ledger can store. Decorators around this one have to be made with ``functools.wraps``, which
    leads from the job to its function. Raises ``UsageError`` for a coroutine function or a generator, of
    which nothing would run.

    A call of the function raises ``UsageError`` inside the transaction of another such function, or of
    itself: two transactions would commit one without the other.
    """

    validation.source(source)
    if coordinator is not None:
        validation.synchronous(coordinator)
    count("retries", retries)
    validation.options(timeout, None)

    def decorate(function: Callable[Concatenate[Transaction, P], T]) -> Callable[P, T]:
        check_synchronous(function, "@transactional")

        def work(tx: Transaction, *arguments: P.args, **named: P.kwargs) -> T:
            return checked_result(function, function(tx, *arguments, **named), "@transactional")

        @functools.wraps(function)
        def job(*arguments: P.args, **named: P.kwargs) -> T:
            current = _own_job(job)
            key = None if current is None else _key(current)

            def run(opened: Coordinator) -> T:
                return opened.run(
                    lambda tx: work(tx, *arguments, **named), key=key, retries=retries, timeout=timeout
                )

            token = _inside.set(function.__qualname__)
            try:
                if coordinator is not None:
                    result = run(coordinator)
                else:
                    with undoubt.sync.connect(source) as opened:
                        result = run(opened)
            finally:
                _inside.reset(token)
            if current is not None:
                _done.set(current)
            return result

        return job

    return decorate


def _own_job(function: Callable[..., Any]) -> Job | None:
    """The job that the worker runs, if ``function`` is its function. Raises ``UsageError`` for a call inside
    a transaction, and for the second call of one job."""
    if outer := _inside.get():
        raise UsageError(
            f"{function.__qualname__}() was called inside the transaction of {outer}(), and one of both could"
            " commit without the other: move the common work into a function that takes the transaction, and"
            " call that one"
        )
    current = get_current_job()
    if current is None or not _leads_to(current.func, function):
        return None
    if _done.get() is current:
        raise UsageError(
            f"{function.__qualname__}() is the function of job {current.id}, and was called twice in it: the"
            " job's key would answer the second call with the result of the first"
        )
    return current


def _leads_to(found: Any, wanted: Callable[..., Any]) -> bool:
    """Whether ``found`` is ``wanted``, a method of it, or what ``functools.wraps`` has made of it."""
    while found is not None and found is not wanted:
        found = getattr(found, "__func__", None) or getattr(found, "__wrapped__", None)
    return found is not None


def _key(job: Job) -> str:
    made = f"{job.created_at:%Y%m%dT%H%M%S.%f}"  # kept by retries; enqueued_at is not
    return f"rq:{job.id}:{made}:{job.repeats_left or 0}"
