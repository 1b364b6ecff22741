"""Django: ``atomic(using=[…])``, one commit over several databases at the outermost block.

::

    UNDOUBT = {"source": "undoubt.toml"}                    # settings.py

    from undoubt.integrations.django import atomic

    with atomic(using=["orders", "payments"]):
        Order.objects.create(item="a lamp")
        Account.objects.filter(name="ada").update(balance=F("balance") - 15)
    # here it is committed in both, or TransactionAborted was raised and it is in neither

The ORM works on Django's own connections, which become branches for the time of the block; routers,
savepoints (Django's ``atomic`` inside), ``transaction.on_commit`` and persistent connections are unchanged.
``on_commit`` functions are called after the commit of all databases. In a test of Django's ``TestCase``,
which rolls everything back, the block is a savepoint in each database, like every other ``atomic``;
``TransactionTestCase`` commits.

``publish`` puts a message into the outbox of one of the databases, inside the block; ``guard`` has one refuse
a stale holder of a lock."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from undoubt.coordinator.errors import CoordinatorClosed, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.publishing import checked, put
from undoubt.coordinator.runnable import check_synchronous, checked_result
from undoubt.coordinator.transaction import Transaction
from undoubt.integrations import answers, validation
from undoubt.integrations.django_test_databases import process_of_tests
from undoubt.integrations.extras import needs
from undoubt.integrations.per_process import PerProcess
from undoubt.integrations.sqlalchemy.lent_connection import LentConnection, settle
from undoubt.integrations.sqlalchemy.psycopg_driver import PsycopgAdopted
from undoubt.participants import bounds
from undoubt.participants.contract import Branch
from undoubt.participants.errors import ParticipantError, UndoubtError, UsageError
from undoubt.participants.ids import NO_KEY, Gid, SessionKey
from undoubt.participants.outbox import Publication
from undoubt.participants.postgres import PostgresParticipant
from undoubt.sync import Coordinator
from undoubt.sync.lock import Lock
from undoubt.sync.transaction import may_come_from_a_branch

with needs("django"):
    from django.conf import settings
    from django.db import connections, transaction
    from django.http import HttpRequest, HttpResponse

__all__ = ["TellOutcome", "atomic", "coordinator", "guard", "publish"]

P = ParamSpec("P")
T = TypeVar("T")

_processes: dict[int, tuple[Mapping[str, Any], PerProcess]] = {}
"""By the identity of the settings, which are kept, so that it stays theirs."""
_lock = threading.Lock()


class _Local(threading.local):
    """The block in which this thread works."""

    unit: _Unit | None = None
    using: tuple[str, ...] = ()
    """The databases of the outermost block, if a ``TestCase`` is around it: then it is a savepoint."""


_here = _Local()


def coordinator() -> Coordinator:
    """The coordinator of this process: opened at the first transaction with ``settings.UNDOUBT["source"]``,
    or ``settings.UNDOUBT["coordinator"]``. In a run of Django's tests, one over the databases of the test
    runner instead of those of the source. Raises ``ConfigurationError``, ``LedgerError``."""
    options: Any = getattr(settings, "UNDOUBT", {})
    if not isinstance(options, Mapping):
        raise UsageError(f"settings.UNDOUBT must be a mapping, not of type {type(options).__name__}")
    if options.get("coordinator") is None:
        of_tests = process_of_tests(options.get("source"), options.get("participants", {}))
        if of_tests is not None:
            return of_tests.get()
    with _lock:
        if id(options) not in _processes:
            _processes[id(options)] = (options, PerProcess(options.get("source"), options.get("coordinator")))
        _, process = _processes[id(options)]
    return process.get()


def publish(
    using: str,
    payload: object,
    *,
    topic: str | None = None,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Put a message into the outbox of database ``using``, which is one of those of the ``atomic`` block in
    which this is called; returns its dedupe id. See :func:`undoubt.coordinator.publishing.publish`; the topic
    is the name of the participant by default. A savepoint that is rolled back takes its messages with it.

    In a ``TestCase``, whose blocks never commit, the arguments are checked, nothing is stored, and the answer
    is empty. Raises ``UsageError`` outside an ``atomic`` block."""
    bounds.text("using", using)
    names: dict[str, str] = getattr(settings, "UNDOUBT", {}).get("participants", {})
    name = names.get(using, using)
    message = checked(name, payload, topic=topic, key=key, headers=headers)
    unit = _unit_with(using)
    return "" if unit is None else unit.publish(name, message)


def guard(lock: Lock, using: str) -> None:
    """Have database ``using``, one of those of the ``atomic`` block in which this is called, refuse a stale
    holder of ``lock``, before the block reads or writes there what the lock protects: see
    :meth:`undoubt.coordinator.locks.Lock.guard`. ``lock`` is made by ``coordinator().lock``.

    In a ``TestCase`` it does nothing. Raises ``UsageError`` outside an ``atomic`` block."""
    bounds.text("using", using)
    if not isinstance(lock, Lock):
        raise bounds.OutOfBounds("lock", f"must be one of coordinator().lock(…), not {lock!r}")
    names: dict[str, str] = getattr(settings, "UNDOUBT", {}).get("participants", {})
    if (unit := _unit_with(using)) is not None:
        unit.guard(lock, names.get(using, using))


def _unit_with(using: str) -> _Unit | None:
    """The block of this thread, which has database ``using``; None in a ``TestCase``. Raises
    ``UsageError``."""
    if _here.unit is not None:
        _here.unit.check([using])
    elif not _here.using:
        raise UsageError("this has to be called inside a block of undoubt's atomic(using=[…])")
    return _here.unit


class atomic:  # noqa: N801 - the name of what it stands for
    """A block, or a decorator: commits in all databases of ``using`` at its end, or in none. ``using`` are
    aliases of ``DATABASES``; ``settings.UNDOUBT["participants"]`` maps an alias to the name of a participant
    if the names differ. ``timeout``, ``protocol`` and ``agent``, a participant, are those of
    ``coordinator.transaction``.

    Inside another block of this kind it is a savepoint in each database; its databases have to be among those
    of the outer block. Raises ``TransactionAborted``, ``OutcomeUnknown``, ``HeuristicOutcome``;
    ``UsageError`` inside a block of Django's own, and with ``ATOMIC_REQUESTS``."""

    def __init__(
        self,
        using: Iterable[str],
        *,
        timeout: float | None = None,
        protocol: str | None = None,
        agent: str | None = None,
    ) -> None:
        if isinstance(using, str | bytes) or callable(using) or not isinstance(using, Iterable):
            raise UsageError("atomic(using=[…]) takes a list of the aliases of databases")
        self._using = tuple(
            dict.fromkeys(bounds.text("an alias in using", alias, empty=False) for alias in using)
        )
        if not self._using:
            raise UsageError("atomic(using=[…]) needs at least one alias")
        self._options = validation.options(timeout, protocol, agent)
        self._entered: list[tuple[_Unit | ExitStack, bool]] = []

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """The decorator. Raises ``UsageError`` for a coroutine function or a generator: nothing of it would
        run before the commit."""
        check_synchronous(function, "@atomic")

        @functools.wraps(function)
        def inside(*arguments: P.args, **named: P.kwargs) -> T:
            # A block of each call's own: the function may call itself, in any thread.
            with atomic(self._using, **self._options):
                return checked_result(function, function(*arguments, **named), "@atomic")

        return inside

    def __enter__(self) -> atomic:
        outer = _here.unit
        opened = [alias for alias in self._using if connections[alias].in_atomic_block]
        if outer is not None:
            outer.check(self._using)
        elif _here.using:
            _check_named(self._using, _here.using)
        elif any(not _is_of_a_test(connections[alias]) for alias in opened):
            raise UsageError(
                f"database {opened[0]!r} is in an atomic block already: atomic(using=[…]) has to be the"
                " outermost block. Name all its databases there, and leave ATOMIC_REQUESTS out"
            )
        if outer is not None or opened:
            outermost = outer is None and not _here.using
            self._entered.append((_savepoints(self._using), outermost))
            if outermost:
                _here.using = self._using
        else:
            unit = _Unit(coordinator(), self._using, self._options)
            unit.begin()
            _here.unit = unit
            self._entered.append((unit, True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered, outermost = self._entered.pop()
        if isinstance(entered, _Unit):
            _here.unit = None
            entered.end(error)
        else:
            if outermost:
                _here.using = ()
            entered.__exit__(kind, error, trace)


def _check_named(using: Iterable[str], outermost: tuple[str, ...]) -> None:
    if others := [alias for alias in using if alias not in outermost]:
        raise UsageError(
            f"database {others[0]!r} is not in the outermost atomic(using={list(outermost)}): name it there"
        )


def _savepoints(using: Iterable[str]) -> ExitStack:
    with ExitStack() as stack:
        for alias in using:
            stack.enter_context(transaction.atomic(using=alias))
        return stack.pop_all()


def _is_of_a_test(connection: Any) -> bool:
    return all(block._from_testcase for block in connection.atomic_blocks)


class _Unit:
    """One outermost block: its transaction, and the connections that are branches of it."""

    def __init__(self, opened: Coordinator, using: tuple[str, ...], options: dict[str, Any]) -> None:
        self._portal = opened.portal
        self._engine = opened.engine
        self._using = using
        self._transaction: Transaction = opened.engine.transaction(**options)
        self._blocks = ExitStack()
        self._lent: list[_Lent] = []

    def check(self, using: Iterable[str]) -> None:
        """Raise ``UsageError`` for a database that is not of this block."""
        _check_named(using, self._using)

    def begin(self) -> None:
        """Enter Django's blocks, and make their connections branches."""
        names: dict[str, str] = getattr(settings, "UNDOUBT", {}).get("participants", {})
        _check_different(self._using, names)
        try:
            for alias in self._using:
                connection = connections[alias]
                _check_usable(alias, connection)
                self._blocks.enter_context(transaction.atomic(using=alias, durable=True))
                self._lent.append(_Lent(self._engine.participants, connection, names.get(alias, alias)))
            self._portal.call(self._begin)
        except BaseException as error:
            self._leave(error)
            raise

    def publish(self, name: str, message: Publication) -> str:
        """Raises the errors of ``Transaction.publish``."""
        return self._in_branch(put, self._transaction, name, message)

    def guard(self, lock: Lock, name: str) -> None:
        """Raises the errors of ``Lock.guard``."""
        self._in_branch(lock.engine.guard_in, self._transaction, name)

    def _in_branch(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        try:
            return self._portal.call(function, *arguments)
        except ParticipantError as error:
            cause = self._portal.call(self._transaction.find_out, error)
            if cause is not None:
                raise TransactionAborted(self._transaction.id, cause) from error
            raise

    def end(self, error: BaseException | None) -> None:
        """Commit, or roll back because of ``error``, and leave Django's blocks. Raises the errors of
        ``commit``."""
        try:
            if error is None:
                self._commit()
            else:
                self._roll_back(error)
                self._tell_interruption(error)
        except BaseException as raised:
            self._leave(raised)
            raise
        hooks = self._take_hooks() if error is None else []
        self._leave(error)
        try:
            for connection, pending in hooks:
                connection.run_on_commit = pending
                connection.run_and_clear_commit_hooks()
        except BaseException as raised:
            self._transaction.note_commit(raised)
            raise

    def _commit(self) -> None:
        for alias in self._using:
            connection = connections[alias]
            if connection.closed_in_transaction or connection.needs_rollback:
                cause = UsageError(f"database {alias!r} was closed, or marked for rollback, in the block")
                self._roll_back(cause)
                told = self._transaction.interruption or cause
                raise TransactionAborted(self._transaction.id, told) from told
        try:
            self._portal.call(self._committed)
        except CoordinatorClosed:
            if self._transaction.committing:
                raise OutcomeUnknown(self._transaction.id, "the coordinator was closed meanwhile") from None
            raise
        except UndoubtError:
            raise
        except BaseException as interruption:  # the handler of a signal has raised it in this thread
            if self._transaction.active:
                self._portal.flush()
            self._transaction.note_commit(interruption)
            raise

    def _roll_back(self, error: BaseException) -> None:
        try:
            self._portal.call(self._rolled_back, error)
        except UndoubtError as failure:
            error.add_note(f"transaction {self._transaction.id} had ended before its rollback: {failure}")

    def _tell_interruption(self, error: BaseException) -> None:
        """Raise ``TransactionAborted`` if the transaction was aborted from outside, of which ``error`` may
        have come: Django's error says only that a statement was cancelled."""
        cause = self._transaction.interruption
        if cause is not None and may_come_from_a_branch(error):
            raise TransactionAborted(self._transaction.id, cause) from cause

    def _take_hooks(self) -> list[tuple[Any, list[Any]]]:
        """Django would call those of the first database before the others have left their block."""
        hooks = []
        for alias in self._using:
            connection = connections[alias]
            hooks.append((connection, connection.run_on_commit))
            connection.run_on_commit = []
        return hooks

    def _leave(self, error: BaseException | None) -> None:
        """Give the connections back, and leave Django's blocks, which have nothing left to commit."""
        for lent in self._lent:
            lent.finish()
        if error is None:
            self._blocks.close()
            return
        try:
            self._blocks.__exit__(type(error), error, error.__traceback__)
        except Exception as failure:  # noqa: BLE001 - the caller has to see ``error``
            error.add_note(f"leaving Django's block failed: {failure}")

    # In the engine's loop.

    async def _begin(self) -> None:
        await self._transaction.start()
        try:
            for lent in self._lent:
                await self._transaction.adopt(lent)
        except BaseException:
            await self._transaction.rollback()
            raise

    async def _committed(self) -> None:
        try:
            await self._transaction.end_block()
        finally:
            await self._settle()

    async def _rolled_back(self, error: BaseException) -> None:
        try:
            if self._transaction.active:
                await self._transaction.undo_after(error)
            else:
                await self._transaction.rollback()
        finally:
            await self._settle()

    async def _settle(self) -> None:
        await settle([lent.taken for lent in self._lent if lent.taken is not None])


def _check_different(using: Iterable[str], names: Mapping[str, str]) -> None:
    aliases: dict[str, str] = {}
    for alias in using:
        other = aliases.setdefault(names.get(alias, alias), alias)
        if other != alias:
            raise UsageError(
                f"databases {other!r} and {alias!r} are one participant, {names.get(alias, alias)!r}: name"
                " only one of them in using=, and use that one in the block"
            )


def _check_usable(alias: str, connection: Any) -> None:
    if connection.vendor != "postgresql" or not hasattr(connection.Database, "AsyncConnection"):
        raise UsageError(f"database {alias!r} is not PostgreSQL by psycopg 3")
    if not connection.get_autocommit():
        raise UsageError(f"database {alias!r} has AUTOCOMMIT off: Django's blocks need it")


class _Lent:
    """Opens the branch of ``name`` on the connection of Django."""

    def __init__(self, participants: Any, connection: Any, name: str) -> None:
        self._participants = participants
        self._driver = connection.connection
        self.name = name
        self.taken: LentConnection | None = None

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> Branch:
        participant = self._participants.get(self.name)
        if not isinstance(participant, PostgresParticipant):
            raise UsageError(f"participant {self.name!r} is not a PostgreSQL database")
        self.taken = LentConnection(PsycopgAdopted(self._driver), participant.settings.statement_timeout_s)
        known: dict[str, Any] = vars(self._driver).setdefault("_undoubt", {})
        return await self.taken.branch(participant, known, gid, timeout_s=timeout_s, key=key)

    def finish(self) -> None:
        """Take the connection back for Django, or leave it to the engine: Django opens another one."""
        if self.taken is not None:
            self.taken.finish()


class TellOutcome:
    """Middleware of Django: answers what an ``atomic`` block of a view has raised by
    :mod:`~undoubt.integrations.answers` instead of a bare 500."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_exception(self, _: HttpRequest, error: BaseException) -> HttpResponse | None:
        """Called by Django with what a view has raised."""
        if not isinstance(error, answers.OUTCOMES + answers.BEFORE_COMMIT):
            return None
        answers.note(error)
        answer = answers.answer(error)
        return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))
