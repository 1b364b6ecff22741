"""RQ: a job that succeeds after the commit of its transaction, and is done once.

::

    @transactional("undoubt.toml")
    def place(tx, item):
        tx.branch("orders").execute(…)
        tx.branch("payments").execute(…)

    Queue(connection=redis).enqueue(place, "a lamp")

The job's success and its result are stored only after the commit. The transaction's key is the job's id: a
job that is run again, because its worker died or its outcome was unknown, does not do its work twice, and its
result is that of the run that committed (within the ledger's retention). A job whose outcome is unknown fails
with ``OutcomeUnknown``; ``enqueue(…, retry=Retry(max=3))`` runs it again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import undoubt.sync
from undoubt.coordinator.runnable import check_synchronous, checked_result
from undoubt.integrations import validation
from undoubt.integrations.extras import needs
from undoubt.integrations.per_process import Source
from undoubt.participants.bounds import count
from undoubt.sync import Coordinator, Transaction

with needs("rq"):
    from rq import get_current_job

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
    that the ledger can store. Outside of a worker the function runs without a key. Raises ``UsageError`` for
    a coroutine function or a generator, of which nothing would run.
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
            current: Any = get_current_job()
            key = None if current is None else f"rq:{current.id}"

            def run(opened: Coordinator) -> T:
                return opened.run(
                    lambda tx: work(tx, *arguments, **named), key=key, retries=retries, timeout=timeout
                )

            if coordinator is not None:
                return run(coordinator)
            with undoubt.sync.connect(source) as opened:
                return run(opened)

        return job

    return decorate
