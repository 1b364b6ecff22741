"""``undoubt.sync.connect``: makes a coordinator for threads."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from undoubt.config import Settings
from undoubt.connect import connect as engine_connect
from undoubt.coordinator.protocols.steps import Observer
from undoubt.sync.coordinator import Coordinator

if TYPE_CHECKING:
    from undoubt.metrics import Metrics
    from undoubt.wiring import OnConnects


def connect(
    source: str | PathLike[str] | Mapping[str, Any] | Settings | None = None,
    *,
    observe: Observer | None = None,
    recover: bool = True,
    metrics: Metrics | None = None,
    on_connect: OnConnects | None = None,
    create: bool = False,
) -> Coordinator:
    """A running coordinator. The caller closes it, by ``with`` or by ``close()``.

    The arguments are those of :func:`undoubt.connect`. Branches are psycopg connections, whatever the
    ``driver`` of their participant is. ``observe`` is called in the engine's thread, ``on_connect`` and the
    participants' ``init`` in worker threads.
    """
    return Coordinator(
        lambda: engine_connect(
            source,
            observe=observe,
            recover=recover,
            metrics=metrics,
            handles="sync",
            on_connect=on_connect,
            create=create,
        )
    )
