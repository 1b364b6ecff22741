"""The interface of a driver's connection that is taken from the application's pool for a transaction."""

from __future__ import annotations

from typing import Protocol

from undoubt.participants.ids import Gid
from undoubt.participants.postgres.connection_proxy import Handle
from undoubt.participants.postgres.session import ServerSession


class Adopted(Handle, Protocol):
    """A connection of the application that is in use by a branch. As a
    :class:`~undoubt.participants.postgres.connection_proxy.Handle` it ends the application's use of the
    connection."""

    @property
    def session(self) -> ServerSession: ...

    def begin(self, gid: Gid) -> str:
        """Mark the connection as used by branch ``gid``. Returns the statement that begins the transaction
        with the options of SQLAlchemy's engine, empty if a transaction has begun. Raises ``UsageError``."""
        ...

    def restore(self) -> None:
        """Give the connection back to the pool: undoubt's engine has left it clean, or the pool has taken it
        back without asking the engine. Nothing more is sent through ``session``."""
        ...

    @property
    def stolen(self) -> bool:
        """Whether ``steal`` was called, or the application has closed the connection, which has the same
        effect."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the connection is closed, or will be closed soon."""
        ...

    def steal(self) -> None:
        """Leave the connection to undoubt's engine, which still uses it: from now on the pool's object is a
        closed connection."""
        ...


def begin_statement(isolation: str | None, *, read_only: bool | None, deferrable: bool | None) -> str:
    """The BEGIN statement with these options; None means the server's default."""
    parts = ["begin"]
    if isolation:
        parts.append("isolation level " + isolation.replace("_", " ").lower())
    if read_only is not None:
        parts.append("read only" if read_only else "read write")
    if deferrable is not None:
        parts.append("deferrable" if deferrable else "not deferrable")
    return " ".join(parts)


AUTOCOMMIT = (
    "the engine's isolation level is AUTOCOMMIT, so its statements cannot be part of a transaction; give the"
    " session an engine with another level: engine.execution_options(isolation_level='READ COMMITTED')"
)
