"""Listens to the events of engines, and keeps those of participants apart from SQLAlchemy's own two-phase
commit, which does not check PREPARE and whose prepared transactions no recovery knows.

From the import of this module on, every ``begin_twophase`` of the process is seen: it is refused on an engine
that a session of undoubt was given, and an engine on which it was seen is refused to the sessions of undoubt
that are made later. An engine and those that its ``execution_options()`` returns count as one."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy import event

from undoubt.integrations.sqlalchemy.enlisted_connection import checked_in, failed
from undoubt.participants.errors import UsageError

_CHANGE = (
    "change Session(twophase=True, …) to undoubt.integrations.sqlalchemy.Session(coordinator=…,"
    " participants=…)"
)

_lock = threading.Lock()
"""Protects both sets: threads begin transactions and make sessions at the same time."""
_of_participants: weakref.WeakSet[sa.Dialect] = weakref.WeakSet()
_with_twophase: weakref.WeakSet[sa.Dialect] = weakref.WeakSet()
"""Each by the dialect of the engine, which derived engines share, and which ``engine.dispose()`` keeps."""


def watch(engines: Iterable[sa.Engine]) -> None:
    """Listen to the pools of ``engines``, each of which is a participant's. Raises ``UsageError`` if one of
    them has had a two-phase transaction of SQLAlchemy's own."""
    for engine in engines:
        with _lock:
            if engine.dialect in _of_participants:
                continue
            if engine.dialect in _with_twophase:
                raise UsageError(
                    f"a session with twophase=True has used {engine!r} in this process, an engine of a"
                    f" participant of undoubt: {_CHANGE}"
                )
            _of_participants.add(engine.dialect)
        event.listen(engine, "checkin", checked_in)


def _notice(connection: sa.Connection, _: object) -> None:
    """Raise ``UsageError`` on an engine of a participant."""
    with _lock:
        if connection.dialect not in _of_participants:
            _with_twophase.add(connection.dialect)
            return
    raise UsageError(
        f"a session with twophase=True uses {connection.engine!r}, an engine of a participant of undoubt:"
        f" {_CHANGE}"
    )


# For all engines: what listens to a derived engine does not hear of the one behind it.
event.listen(sa.Engine, "handle_error", failed)
event.listen(sa.Engine, "begin_twophase", _notice)
