"""Calls from a session into the engine's event loop: by SQLAlchemy's greenlet, or by the portal."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from sqlalchemy.util import await_

from undoubt.coordinator.coordinator import Coordinator
from undoubt.participants.errors import UsageError
from undoubt.sync import Coordinator as SyncCoordinator

T = TypeVar("T")


class Bridge:
    """Calls methods of ``coordinator``: that of ``undoubt.connect`` for ``AsyncSession``, that of
    ``undoubt.sync`` for ``Session``."""

    def __init__(self, coordinator: Coordinator | SyncCoordinator) -> None:
        match coordinator:
            case Coordinator():
                self.engine = coordinator
                self.awaits = True
                self._portal = None
            case SyncCoordinator():
                self.engine = coordinator.engine
                self.awaits = False
                self._portal = coordinator.portal
            case _:
                raise UsageError(
                    "a Session needs a coordinator=… of undoubt.sync.connect(), an AsyncSession one of"
                    f" undoubt.connect(), not {coordinator!r}"
                )

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        """The result of ``await function(*arguments)`` in the engine's loop."""
        if self._portal is not None:
            return self._portal.call(function, *arguments)
        return await_(function(*arguments))

    def flush(self) -> None:
        """Return once all calls that were sent before have begun, also those that were interrupted."""
        if self._portal is not None:
            self._portal.flush()
