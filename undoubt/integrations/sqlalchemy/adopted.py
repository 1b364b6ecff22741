"""What the integration needs of a driver: one connection of the user's pool, taken over for a transaction."""

from __future__ import annotations

from typing import Protocol

from undoubt.participants.ids import Gid
from undoubt.participants.postgres.connection_proxy import Handle
from undoubt.participants.postgres.session import ServerSession


class Adopted(Handle, Protocol):
    """As a :class:`~undoubt.participants.postgres.connection_proxy.Handle` it ends the application's use of
    the connection."""

    @property
    def session(self) -> ServerSession: ...

    def begin(self, gid: Gid) -> str:
        """From now on the connection counts as used by branch ``gid``. Returns the statement that begins its
        transaction as the engine is set up to do it, empty if one has begun. Raises ``UsageError``."""
        ...

    def restore(self) -> None:
        """It is the pool's again: the engine has done with it and left it clean, or has lost it to the pool
        behind its back. Nothing more is sent through ``session``."""
        ...

    @property
    def stolen(self) -> bool:
        """``steal`` was called, or the application has closed the connection, which does the same."""
        ...

    @property
    def closed(self) -> bool:
        """The connection is closed, or about to be."""
        ...

    def steal(self) -> None:
        """The engine has not done with it, and keeps it: what the pool has is a closed connection from now
        on."""
        ...


def begin_statement(isolation: str | None, *, read_only: bool | None, deferrable: bool | None) -> str:
    """BEGIN with the options that the engine's connection has; None is the server's default."""
    parts = ["begin"]
    if isolation:
        parts.append("isolation level " + isolation.replace("_", " ").lower())
    if read_only is not None:
        parts.append("read only" if read_only else "read write")
    if deferrable is not None:
        parts.append("deferrable" if deferrable else "not deferrable")
    return " ".join(parts)


AUTOCOMMIT = (
    "the engine's isolation level is AUTOCOMMIT, so nothing of it could be part of a transaction; give the"
    " session an engine with another one: engine.execution_options(isolation_level='READ COMMITTED')"
)
