"""A unit of work: the connections that a session used in one transaction, which are committed together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm.session import SessionTransaction, SessionTransactionState

from undoubt.coordinator.errors import CoordinatorClosed, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.locks import Lock
from undoubt.coordinator.publishing import put
from undoubt.coordinator.transaction import Transaction
from undoubt.integrations.sqlalchemy.enlisted_connection import EnlistedConnection, checked
from undoubt.integrations.sqlalchemy.lent_connection import abort_later, settle
from undoubt.integrations.sqlalchemy.sync_bridge import Bridge
from undoubt.participants.errors import ParticipantError, UndoubtError, UsageError
from undoubt.participants.outbox import Publication
from undoubt.participants.postgres import PostgresParticipant

if TYPE_CHECKING:
    from undoubt.integrations.sqlalchemy.session import Session

log = logging.getLogger(__name__)

T = TypeVar("T")


class Unit:
    """The unit of work of one transaction. ``root`` is the session's outermost transaction."""

    def __init__(self, session: Session, root: SessionTransaction, bridge: Bridge) -> None:
        self._session = session
        self._root = root
        self._bridge = bridge
        self._transaction: Transaction | None = None
        self._members: list[EnlistedConnection] = []
        self._failure: BaseException | None = None
        """Why a connection could not become a branch; the unit must not commit then."""
        self.over = False

    @property
    def transaction(self) -> Transaction | None:
        """The transaction; None before it has a branch."""
        return self._transaction

    def belongs_to(self, root: SessionTransaction) -> bool:
        return self._root is root and not self.over

    def participant(self, name: str) -> PostgresParticipant:
        return checked(self._bridge.engine.participants.get(name), name)

    def adopt(self, connection: sa.Connection, name: str | None) -> None:
        """Make ``connection``, on which SQLAlchemy has just begun, a branch of participant ``name``."""
        # The entry first: if one of the next calls fails, SQLAlchemy must not commit this connection itself.
        kept: Any = self._root._connections
        _, begun, should_commit, autoclose = kept[connection]
        member = EnlistedConnection(self, connection, begun, name or "")
        kept[connection] = kept[connection.engine] = (connection, member, should_commit, autoclose)
        self._members.append(member)
        try:
            self._check(connection, name, autoclose)
            self._bridge.call(self._adopt, member)
        except BaseException as error:
            self._failure = self._failure or error
            raise

    def _check(self, connection: sa.Connection, name: str | None, autoclose: bool) -> None:
        engine = connection.engine
        if not autoclose:
            raise UsageError("the session is bound to a Connection; bind it to engines")
        if connection.dialect.name != "postgresql":
            raise UsageError(f"{engine!r} is not PostgreSQL, so it cannot take part in this session's commit")
        if name is None:
            raise UsageError(
                f"{engine!r} has no participant: name the participant of the same database in"
                " Session(participants={engine: name, …})"
            )
        if connection.dialect.is_async is not self._bridge.awaits:
            raise UsageError(
                "a Session needs the coordinator of undoubt.sync.connect() and synchronous engines, an"
                " AsyncSession that of undoubt.connect() and asynchronous engines;"
                f" {engine!r} is of the other kind"
            )

    def engine(self, name: str) -> sa.Engine | None:
        """The engine whose connection is the unit's branch in participant ``name``; None if there is none."""
        return next((member.engine for member in self._members if member.name == name), None)

    def publish(self, name: str, message: Publication) -> str:
        """Put ``message`` into the outbox of participant ``name``, in which the unit has a branch. Raises the
        errors of ``Transaction.publish``."""
        return self._in_branch(put, self._begun, name, message)

    def guard(self, lock: Lock, name: str) -> None:
        """Guard the unit's branch in participant ``name``. Raises the errors of ``Lock.guard``."""
        self._in_branch(lock.guard_in, self._begun, name)

    @property
    def _begun(self) -> Transaction:
        if self._transaction is None:
            raise UsageError("the connection is no branch: its begin has failed")
        return self._transaction

    def _in_branch(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        try:
            return self._bridge.call(function, *arguments)
        except ParticipantError as error:
            self.failed(error)
            raise

    def commit(self) -> None:
        """Commit all connections. Only the first call has an effect; when it returns, all are committed."""
        if self.over:
            return
        if self._failure is not None:
            self.rollback()
            if self._transaction is None or self._transaction.repeated:
                raise self._failure
            raise TransactionAborted(self._transaction.id, self._failure) from self._failure
        self.over = True
        try:
            self._call(self._commit)
        except TransactionAborted:
            self._finish(committed=False)
            raise
        except BaseException as error:
            self._interrupted(error)
            raise
        self._finish(committed=True)

    def _interrupted(self, error: BaseException) -> None:
        """The call of the commit has raised ``error``, which may leave the commit running. Raises
        ``OutcomeUnknown`` if the coordinator was closed during the commit."""
        transaction = self._transaction
        if transaction is not None and not isinstance(error, UndoubtError):
            # Raised by the handler of a signal, or by the cancellation of the caller.
            if transaction.active:
                self._bridge.flush()  # the commit may be on its way to the loop
            if transaction.active:
                self.over = False
                self.rollback()
                return
            transaction.note_commit(error)
        self._leave()
        if transaction is not None and transaction.committing and isinstance(error, CoordinatorClosed):
            raise OutcomeUnknown(transaction.id, "the coordinator was closed meanwhile") from None

    def rollback(self) -> None:
        """Roll back all connections. Does nothing after ``commit`` was called, which may have decided."""
        if self.over:
            return
        self.over = True
        try:
            self._call(self._rollback)
        except UndoubtError as error:
            log.debug("the transaction had ended before its rollback: %s", error)
        finally:
            self._finish(committed=False)

    def failed(self, error: Exception) -> None:
        """A statement on one of the unit's connections has failed. Raises ``TransactionAborted`` if the
        transaction was aborted from outside, which the driver's error does not say."""
        transaction = self._transaction
        if transaction is None or self.over:
            return
        cause = self._bridge.call(transaction.find_out, error)
        if cause is not None:
            raise TransactionAborted(transaction.id, cause) from error

    def _call(self, function: Callable[[Transaction], Coroutine[Any, Any, None]]) -> None:
        if self._transaction is not None:
            self._bridge.call(function, self._transaction)

    def _finish(self, *, committed: bool) -> None:
        for member in self._members:
            member.finish(committed=committed)

    def _leave(self) -> None:
        """Close the session's transaction with an unknown outcome: neither the commit's events nor the
        rollback's events are called. The session's objects are read again when they are next used."""
        self._finish(committed=False)
        with self._root._expect_state(SessionTransactionState.CLOSED):
            self._root.close()
        self._session.expire_all()

    # In the engine's loop.

    async def _adopt(self, member: EnlistedConnection) -> None:
        if self._transaction is None:
            transaction = self._bridge.engine.transaction(
                timeout=self._session.undoubt_timeout,
                protocol=self._session.undoubt_protocol,
                key=self._session.undoubt_key,
                agent=self._session.undoubt_agent,
            )
            self._transaction = await transaction.start()
        await self._transaction.adopt(member)
        if member.taken is not None:
            loop = asyncio.get_running_loop()
            member.taken.on_lost = abort_later(loop, self._transaction, member.name)

    async def _commit(self, transaction: Transaction) -> None:
        try:
            await transaction.commit()
        finally:
            await self._settle()

    async def _rollback(self, transaction: Transaction) -> None:
        try:
            await transaction.rollback()
        finally:
            await self._settle()

    async def _settle(self) -> None:
        await settle([member.taken for member in self._members if member.taken is not None])
