"""Celery: a task whose message is acknowledged after the commit of its transaction, and which is done once.

::

    app = Celery("shop", broker="redis://…")
    app.conf.undoubt = "undoubt.toml"

    @app.task(base=TransactionTask)
    def place(item):
        tx = transaction()
        tx.branch("orders").execute(…)
        tx.branch("payments").execute(…)

The message is acknowledged, and a result is stored, only after the commit. A worker that dies before that
leaves the message to another one, and the transaction's key is the task's id: if the dead worker has
committed, the task is not run again, and the result of the first run is the task's (exactly once, within the
ledger's retention). If the outcome is unknown, the message goes back to the broker, and the next run finds
out.

Only the call by the worker has the key. A task that other code calls directly is a transaction without a key;
inside the transaction of a task such a call is refused."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from undoubt.coordinator.errors import KeyInUse, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.runnable import check_synchronous, checked_result
from undoubt.integrations import validation
from undoubt.integrations.extras import needs
from undoubt.integrations.per_process import PerProcess
from undoubt.participants.bounds import count, seconds
from undoubt.participants.errors import UsageError
from undoubt.sync import Coordinator, Transaction

with needs("celery"):
    from celery import Celery, Task
    from celery.exceptions import Reject
    from celery.signals import worker_process_shutdown, worker_shutdown

__all__ = ["TransactionTask", "coordinator", "transaction"]


@dataclass(frozen=True, slots=True)
class _Running:
    """A task in whose transaction the current code runs. ``outer``: the one that it was called from, by
    ``apply()`` or ``task_always_eager``."""

    tx: Transaction
    name: str
    request: Any
    outer: _Running | None

    def has(self, request: Any) -> bool:
        """Whether ``request`` is that of this task or of an outer one."""
        return self.request is request or (self.outer is not None and self.outer.has(request))


_current: ContextVar[_Running | None] = ContextVar("undoubt_celery_transaction", default=None)
_done: WeakSet[Any] = WeakSet()
"""Requests of tasks that have succeeded, as long as Celery keeps them."""
_processes: WeakKeyDictionary[Any, PerProcess] = WeakKeyDictionary()


def transaction() -> Transaction:
    """The transaction of the task that runs here. Raises ``UsageError`` outside of one."""
    found = _current.get()
    if found is None:
        raise UsageError("no task of undoubt's runs here: declare it by @app.task(base=TransactionTask)")
    return found.tx


def coordinator(app: Celery) -> Coordinator:
    """The coordinator of this process, opened with ``app.conf.undoubt``: the source of
    ``undoubt.sync.connect``, or a coordinator. Raises ``ConfigurationError``, ``LedgerError``."""
    validation.instance("app", app, Celery)
    if app not in _processes:
        source: Any = app.conf.get("undoubt")
        given = source if isinstance(source, Coordinator) else None
        _processes[app] = PerProcess(None if given else source, given)
    return _processes[app].get()


_CALLER = "TransactionTask"


class TransactionTask(Task):  # type: ignore[misc]
    """The base class. ``undoubt_timeout`` is that of ``coordinator.transaction``, ``undoubt_retries`` that of
    ``coordinator.run``: the task's function is called again after a deadlock or a serialization failure. The
    function's result is stored in the ledger too, so it has to be one that can be stored there."""

    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    undoubt_timeout: float | None = None
    undoubt_retries = 5

    def __init_subclass__(cls, **options: Any) -> None:
        """Raises ``UsageError`` if the task's function is a coroutine function or a generator, and for
        options of the task out of their bounds."""
        super().__init_subclass__(**options)
        check_synchronous(cls.run, _CALLER)
        if cls.undoubt_timeout is not None:
            seconds("undoubt_timeout", cls.undoubt_timeout, zero=False)
        count("undoubt_retries", cls.undoubt_retries)

    def undoubt_key(self) -> str | None:
        """The key of the task's transaction: the task's id, or None for a task that is called directly."""
        return None if self.request.called_directly else f"celery:{self.request.id}"

    def _check_call(self) -> None:
        """Raise ``UsageError`` for a direct call inside the transaction of a task, and for the second call of
        one request."""
        running = _current.get()
        if running is not None and (self.request.called_directly or running.has(self.request)):
            raise UsageError(
                f"task {self.name} was called directly inside the transaction of task {running.name}, and one"
                " of both could commit without the other: move the common work into a function that calls"
                " transaction(), and call that one, or send the task by delay()"
            )
        if self.request in _done:
            raise UsageError(
                f"task {self.name} was called twice for one message: its key would answer the second call"
                " with the result of the first"
            )

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self._check_call()
        key = self.undoubt_key()
        try:
            result = coordinator(self.app).run(
                self._run_in,
                arguments,
                named,
                key=key,
                retries=self.undoubt_retries,
                timeout=self.undoubt_timeout,
            )
        except (OutcomeUnknown, KeyInUse) as error:
            if key is None or self.request.is_eager:
                raise
            # The key lets one run commit: another one is safe, waits for the outcome, and has its result.
            raise Reject(error, requeue=True) from error
        except TransactionAborted as error:
            if key is not None and isinstance(error, tuple(getattr(self, "autoretry_for", ()))):
                raise self.retry(exc=error, **getattr(self, "retry_kwargs", {})) from error
            raise
        if key is not None and not self.request.called_directly:
            _done.add(self.request)
        return result

    def _run_in(self, tx: Transaction, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        token = _current.set(_Running(tx, self.name, self.request, _current.get()))
        try:
            return checked_result(self.run, self.run(*arguments, **named), _CALLER)
        finally:
            _current.reset(token)


def _close(**_: Any) -> None:
    for process in list(_processes.values()):
        process.close()


# Processes of a pool do not end by the interpreter's exit, which would close it.
worker_process_shutdown.connect(_close, weak=False)
worker_shutdown.connect(_close, weak=False)
