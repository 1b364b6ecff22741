"""zope.transaction: a data manager, for Pyramid and everything else that works with package ``transaction``.

::

    coordinator = undoubt.sync.connect("undoubt.toml")

    def place(request):
        tx = join(coordinator, request.tx)
        tx.branch("orders").execute(…)
        tx.branch("payments").execute(…)
    # pyramid_tm commits after the view, before the response

Applications of ``zope.sqlalchemy`` keep ``zope.sqlalchemy.register(Session)``, and give their
``sessionmaker`` the class of :mod:`undoubt.integrations.sqlalchemy`.

The databases commit in ``tpc_vote``, after the votes of all other data managers: what the coordinator has
decided cannot be taken back, and what was not committed makes the others abort. So there may be only one data
manager of this kind: a session of SQLAlchemy that commits in one phase beside it is refused before any vote.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from undoubt.coordinator.publishing import checked
from undoubt.coordinator.retries import retryable
from undoubt.integrations import validation
from undoubt.integrations.extras import needs
from undoubt.integrations.zope_sessions import commits_alone
from undoubt.participants.bounds import having
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.sync import Coordinator, Transaction
from undoubt.sync.transaction import may_come_from_a_branch

if TYPE_CHECKING:
    from psycopg import Connection

with needs("zope"):
    import transaction as zope_transaction
    from transaction.interfaces import ISavepointDataManager
    from zope.interface import implementer

__all__ = ["DataManager", "join"]

log = logging.getLogger(__name__)

_LAST = "\U0010ffff" * 8
"""Sorts behind the keys of data managers that vote: eight times the last character that there is."""


def join(
    coordinator: Coordinator,
    manager: Any = None,
    *,
    timeout: float | None = None,
    protocol: str | None = None,
    agent: str | None = None,
) -> DataManager:
    """The data manager of ``coordinator`` in the current transaction of ``manager`` (by default
    ``transaction.manager``); made and joined at the first call. ``timeout``, ``protocol`` and ``agent``
    are those of ``coordinator.transaction``. Raises ``UsageError`` for a second coordinator,
    ``LedgerUnavailable``."""
    validation.synchronous(coordinator)
    options = validation.options(timeout, protocol, agent)
    if manager is not None:
        having("manager", manager, "a manager of zope's transactions", "get")
    current = (manager or zope_transaction.manager).get()
    for joined in current._resources:
        if isinstance(joined, DataManager):
            if joined.coordinator is not coordinator:
                raise UsageError(
                    "this transaction has joined another coordinator: one commit has one coordinator"
                )
            return joined
    tx = _Transaction(coordinator.portal, coordinator.transaction(**options).engine)
    tx.start()
    made = DataManager(coordinator, tx, manager or zope_transaction.manager)
    current.join(made)
    return made


class _Transaction(Transaction):
    """A transaction with savepoints, which are set in each of its branches, whatever opens the branch."""

    _savepoints = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._opened: dict[str, int] = {}
        """The number of savepoints that there were when a branch was opened."""

    def branch(self, name: str) -> Connection[Any]:
        connection = super().branch(name)
        if name not in self._opened:
            self._opened[name] = self._savepoints
            if self._savepoints:  # a savepoint from before the branch means: without what the branch has done
                connection.execute(_named(self._savepoints).encode())
        return connection

    def branches(self, *names: str) -> tuple[Connection[Any], ...]:
        super().branches(*names)
        return tuple(self.branch(name) for name in names)

    def publish(self, name: str, payload: object, **options: Any) -> str:
        checked(name, payload, **options)  # before a branch is opened
        self.branch(name)
        return super().publish(name, payload, **options)

    def savepoint(self) -> int:
        """Set a savepoint; returns its number."""
        self._savepoints += 1
        for name in self._opened:
            self.branch(name).execute(_named(self._savepoints).encode())
        return self._savepoints

    def roll_back_to(self, number: int) -> None:
        """Undo what the branches have done since savepoint ``number``."""
        for name, opened in self._opened.items():
            name_of = f"rollback to savepoint undoubt_{max(number, opened)}"
            self.branch(name).execute(name_of.encode())


@implementer(ISavepointDataManager)
class DataManager:
    """One transaction of ``coordinator`` as a resource of a zope transaction."""

    def __init__(self, coordinator: Coordinator, tx: _Transaction, manager: Any) -> None:
        self.coordinator = coordinator
        self.transaction_manager = manager
        self._tx = tx

    def branch(self, name: str) -> Connection[Any]:
        """The connection to participant ``name``; as :meth:`undoubt.sync.Transaction.branch`."""
        return self._tx.branch(name)

    def branches(self, *names: str) -> tuple[Connection[Any], ...]:
        """The connections to several participants."""
        return self._tx.branches(*names)

    @property
    def tx(self) -> Transaction:
        """The transaction, for ``publish`` and its ``id``."""
        return self._tx

    def savepoint(self) -> _Savepoint:
        """Called by ``transaction.savepoint()``."""
        return _Savepoint(self._tx, self._tx.savepoint())

    # The interface of a data manager, in the order of its calls.

    def sortKey(self) -> str:  # noqa: N802 - a name of zope's
        return f"{_LAST}undoubt:{id(self)}"

    def tpc_begin(self, current: Any) -> None:
        """Nothing is prepared before all the others have voted."""

    def commit(self, current: Any) -> None:
        """Raises ``UsageError`` if another data manager commits in one phase too, or votes later."""
        for other in current._resources:
            if other is self:
                continue
            if commits_alone(other):
                raise UsageError(
                    f"{other!r} commits in one phase beside join(), so one of both may fail after the other"
                    " has committed: use join() alone, or one session of"
                    " sessionmaker(class_=undoubt.integrations.sqlalchemy.Session)"
                )
            if other.sortKey() > self.sortKey():
                raise UsageError(
                    f"{other!r} votes after undoubt has committed, so its vote would come too late: give it"
                    " a sortKey() that sorts before undoubt's"
                )

    def tpc_vote(self, current: Any) -> None:
        """Commit. Raises ``TransactionAborted``, ``OutcomeUnknown``, ``HeuristicOutcome``."""
        self._tx.__exit__(None, None, None)

    def tpc_finish(self, current: Any) -> None:
        """It has committed already."""

    def tpc_abort(self, current: Any) -> None:
        if not self._tx.active and self._tx.may_have_committed:
            log.error("transaction %s may have committed, and its zope transaction is aborted", self._tx.id)
            return
        self.abort(current)

    def abort(self, current: Any) -> None:
        if self._tx.active:
            try:
                self._tx.rollback()
            except UndoubtError as error:
                log.debug("the transaction had ended before its rollback: %s", error)

    def should_retry(self, error: BaseException) -> bool:
        """Whether zope's ``attempts`` may run the transaction again: after a deadlock or a serialization
        failure, never if its outcome is unknown."""
        if self._tx.may_have_committed or not isinstance(error, Exception):
            return False
        if retryable(error):
            return True
        # A deadlock that was found from outside reaches the application as a cancelled statement. Zope asks
        # before it aborts.
        cause = self.coordinator.portal.call(self._tx.engine.find_out, error)
        return cause is not None and may_come_from_a_branch(error) and retryable(cause)


class _Savepoint:
    def __init__(self, tx: _Transaction, number: int) -> None:
        self._tx = tx
        self._number = number

    def rollback(self) -> None:
        self._tx.roll_back_to(self._number)


def _named(number: int) -> str:
    return f"savepoint undoubt_{number}"
