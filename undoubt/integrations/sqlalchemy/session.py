"""``Session`` and ``AsyncSession``: SQLAlchemy's sessions with one commit over all engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import event, orm
from sqlalchemy.ext import asyncio as sa_asyncio
from sqlalchemy.ext import horizontal_shard
from sqlalchemy.orm.session import SessionTransaction

from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.key_use import check_key
from undoubt.coordinator.locks import Lock
from undoubt.coordinator.publishing import checked
from undoubt.coordinator.settings import PROTOCOLS
from undoubt.coordinator.transaction import Transaction
from undoubt.integrations.sqlalchemy.noticed_engines import watch
from undoubt.integrations.sqlalchemy.sync_bridge import Bridge
from undoubt.integrations.sqlalchemy.unit_of_work import Unit
from undoubt.integrations.zope_sessions import watch_zope
from undoubt.participants import bounds
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import TxId
from undoubt.participants.invariant import InvariantViolation
from undoubt.sync import Coordinator as SyncCoordinator
from undoubt.sync.lock import Lock as SyncLock

Engines = Mapping[sa.Engine, str] | Mapping[sa_asyncio.AsyncEngine, str]
"""Engines, synchronous or asynchronous, and the participants that lead to the same databases."""

TWOPHASE = (
    "twophase=True is SQLAlchemy's own two-phase commit, which does not check PREPARE and records no"
    " decision: remove twophase=True from this sessionmaker or Session; undoubt's class prepares and commits"
    " by itself"
)


class Session(orm.Session):
    """``sqlalchemy.orm.Session`` with additional arguments.

    ``coordinator`` commits; ``participants`` names the participant of each engine; ``timeout`` (seconds,
    from the first statement), ``protocol``, ``key`` and ``agent`` are those of ``coordinator.transaction``.
    If another transaction has committed with the key, the first statement raises ``AlreadyCommitted``, which
    has the result. ``undoubt_key`` may be set before the first statement of a transaction. ``commit`` raises
    the errors of a transaction's commit. After ``TransactionAborted`` the session is rolled back as after
    any error. After ``OutcomeUnknown`` and ``HeuristicOutcome`` its transaction is closed without a
    commit or rollback event, and its objects are read again when they are next used.
    """

    def __init__(
        self,
        *arguments: Any,
        coordinator: Coordinator | SyncCoordinator,
        participants: Engines,
        timeout: float | None = None,
        protocol: str | None = None,
        key: str | None = None,
        agent: str | None = None,
        twophase: bool = False,
        **options: Any,
    ) -> None:
        if bounds.flag("twophase", twophase):
            raise UsageError(TWOPHASE)
        if timeout is not None:
            bounds.seconds("timeout", timeout, zero=False)
        if protocol is not None:
            bounds.choice("protocol", protocol, PROTOCOLS)
        if key is not None:
            check_key(key)
        bridge = Bridge(coordinator)
        if agent is not None and bounds.text("agent", agent) not in bridge.engine.participants:
            raise bounds.OutOfBounds("agent", "is not a participant of the coordinator")
        engines = _judged(participants)
        watch(engines)
        super().__init__(*arguments, **options)
        self.undoubt_timeout = timeout
        self.undoubt_protocol = protocol
        self.undoubt_key = key
        self.undoubt_agent = agent
        self._undoubt_bridge = bridge
        self._undoubt_participants = engines
        self._undoubt_unit: Unit | None = None

    @property
    def twophase(self) -> bool:
        """False. Raises ``UsageError`` if it is set to true."""
        return False

    @twophase.setter
    def twophase(self, value: bool) -> None:
        if bounds.flag("twophase", value):
            raise UsageError(TWOPHASE)

    def prepare(self) -> None:
        """Raises ``UsageError``: ``commit`` prepares."""
        raise UsageError("undoubt prepares in commit(): remove the call of prepare()")

    @property
    def undoubt_txid(self) -> TxId | None:
        """The id of the session's current transaction, or of the last one; None before the first statement.
        ``coordinator.outcome`` takes it."""
        transaction = self._undoubt_transaction
        return None if transaction is None else transaction.id

    @property
    def undoubt_result(self) -> Any:
        """The result that is stored with the key of the current transaction, or of the last one. It can be
        set after the first statement, until ``commit``."""
        transaction = self._undoubt_transaction
        return None if transaction is None else transaction.result

    @undoubt_result.setter
    def undoubt_result(self, value: object) -> None:
        if self._undoubt_transaction is None:
            raise UsageError("a result can be set after the first statement of the transaction")
        self._undoubt_transaction.result = value

    @property
    def undoubt_repeated(self) -> bool:
        """Whether another transaction had committed with the key of the current transaction, or of the last
        one, before: ``undoubt_txid`` and ``undoubt_result`` are those of that one then."""
        transaction = self._undoubt_transaction
        return transaction is not None and transaction.repeated

    @property
    def undoubt_may_have_committed(self) -> bool:
        """Whether the transaction of ``undoubt_txid`` may have committed: False until its commit begins, and
        again once it is certain that it did not commit."""
        transaction = self._undoubt_transaction
        return transaction is not None and transaction.may_have_committed

    def undoubt_publish(
        self,
        name: str,
        payload: object,
        *,
        topic: str | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Put a message into the outbox of participant ``name``, in the transaction of the session: see
        :func:`undoubt.coordinator.publishing.publish`. A savepoint that is rolled back takes its messages
        with it."""
        message = checked(name, payload, topic=topic, key=key, headers=headers)
        return self._undoubt_enlisted(name).publish(name, message)

    def undoubt_guard(self, lock: Lock | SyncLock, name: str) -> None:
        """Have the database of participant ``name`` refuse a stale holder of ``lock``, in the transaction of
        the session, before the session reads or writes what the lock protects: see
        :meth:`undoubt.coordinator.locks.Lock.guard`. ``lock`` is one of the session's coordinator."""
        if not isinstance(lock, SyncLock | Lock):
            raise bounds.OutOfBounds("lock", f"must be one of coordinator.lock(…), not {lock!r}")
        bounds.text("name", name)
        self._undoubt_enlisted(name).guard(lock.engine if isinstance(lock, SyncLock) else lock, name)

    def _undoubt_enlisted(self, name: str) -> Unit:
        """The unit of work, with a connection that is the branch in participant ``name``."""
        unit, root = self._undoubt_unit, self.get_transaction()
        engine = None
        if unit is not None and root is not None and unit.belongs_to(root):
            engine = unit.engine(name)
        # Also if there is a branch: SQLAlchemy emits a SAVEPOINT at the first use of a connection in it.
        self.connection(bind_arguments={"bind": engine or self._undoubt_engine(name)})
        if self._undoubt_unit is None:
            raise InvariantViolation("a connection of the session is in no unit of work")
        return self._undoubt_unit

    def _undoubt_engine(self, name: str) -> sa.Engine:
        for engine, of in self._undoubt_participants.items():
            if of == name:
                return engine
        raise UsageError(f"no engine of the session leads to participant {name!r}: name it in participants=…")

    @property
    def _undoubt_transaction(self) -> Transaction | None:
        return None if self._undoubt_unit is None else self._undoubt_unit.transaction

    def undoubt_begun(self, root: SessionTransaction, connection: sa.Connection) -> None:
        """Make a connection on which SQLAlchemy has begun a transaction part of the unit of work."""
        if self._undoubt_unit is None or not self._undoubt_unit.belongs_to(root):
            self._undoubt_unit = Unit(self, root, self._undoubt_bridge)
        self._undoubt_unit.adopt(connection, self._undoubt_name(connection.engine))

    def _undoubt_name(self, engine: sa.Engine) -> str | None:
        for known, name in self._undoubt_participants.items():
            # engine.execution_options() returns another engine with the same pool.
            if known is engine or known.pool is engine.pool:
                return name
        return None


def _judged(participants: object) -> dict[sa.Engine, str]:
    """The participants' names by synchronous engine. Raises ``UsageError``."""
    if not isinstance(participants, Mapping):
        raise bounds.OutOfBounds(
            "participants",
            f"must be a mapping from engines to names, not of type {type(participants).__name__}",
        )
    for engine, name in participants.items():
        if not isinstance(engine, sa.Engine | sa_asyncio.AsyncEngine):
            raise bounds.OutOfBounds(
                "participants", f"must have engines as keys, not of type {type(engine).__name__}"
            )
        bounds.text("a name in participants", name, empty=False)
    return {_synchronous(engine): name for engine, name in participants.items()}


def _synchronous(engine: sa.Engine | sa_asyncio.AsyncEngine) -> sa.Engine:
    return engine.sync_engine if isinstance(engine, sa_asyncio.AsyncEngine) else engine


@event.listens_for(Session, "after_begin", propagate=True)
def _after_begin(session: Session, transaction: SessionTransaction, connection: sa.Connection) -> None:
    if transaction.parent is None:  # a savepoint is on a connection that is a branch already
        watch_zope(session)
        session.undoubt_begun(transaction, connection)


@event.listens_for(Session, "after_attach", propagate=True)
def _after_attach(session: Session, _: object) -> None:
    watch_zope(session)


class AsyncSession(sa_asyncio.AsyncSession):
    """``sqlalchemy.ext.asyncio.AsyncSession`` over :class:`Session`, with the same additional arguments."""

    sync_session_class = Session

    @property
    def undoubt_txid(self) -> TxId | None:
        """As that of :class:`Session`."""
        return self._undoubt_session.undoubt_txid

    @property
    def undoubt_result(self) -> Any:
        """As that of :class:`Session`."""
        return self._undoubt_session.undoubt_result

    @undoubt_result.setter
    def undoubt_result(self, value: object) -> None:
        self._undoubt_session.undoubt_result = value

    @property
    def undoubt_repeated(self) -> bool:
        """As that of :class:`Session`."""
        return self._undoubt_session.undoubt_repeated

    @property
    def undoubt_may_have_committed(self) -> bool:
        """As that of :class:`Session`."""
        return self._undoubt_session.undoubt_may_have_committed

    async def undoubt_publish(
        self,
        name: str,
        payload: object,
        *,
        topic: str | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """As that of :class:`Session`."""
        return await self.run_sync(
            lambda _: self._undoubt_session.undoubt_publish(
                name, payload, topic=topic, key=key, headers=headers
            )
        )

    async def undoubt_guard(self, lock: Lock, name: str) -> None:
        """As that of :class:`Session`."""
        await self.run_sync(lambda _: self._undoubt_session.undoubt_guard(lock, name))

    @property
    def _undoubt_session(self) -> Session:
        return cast("Session", self.sync_session)


class ShardedSession(Session, horizontal_shard.ShardedSession):
    """``sqlalchemy.ext.horizontal_shard.ShardedSession`` over :class:`Session`: the shards commit together.
    Each shard is one participant."""
