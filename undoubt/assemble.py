"""Where settings become things: the ledger and the participants of one process.

``undoubt.connect`` and the command line build on it. Drivers and SQLAlchemy are imported here, when they are
first needed, and nowhere above.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from participants.errors import UnknownParticipant
from participants.registry import Registry

if TYPE_CHECKING:
    from coordinator.ledger.contract import Ledger
    from participants.postgres.drivers import Handles
    from participants.postgres.on_connect import OnConnect
    from undoubt.config import Settings

    OnConnects = OnConnect | Mapping[str, OnConnect]


def registry(
    settings: Settings,
    ledger_id: str,
    *,
    handles: Handles = "async",
    on_connect: OnConnects | None = None,
) -> Registry:
    """The participants of the settings, not yet connected to. Close it when done. ``handles``: what their
    branches give to the application, asynchronous or synchronous connections. ``on_connect``: a hook for new
    connections, or several by participant. Raises ``UnknownParticipant`` if one is for none of them."""
    # A driver is needed by nobody who has no participant.
    from participants.postgres import PostgresParticipant  # noqa: PLC0415

    hooks: dict[str, OnConnect | None] = dict.fromkeys(settings.participants)
    if isinstance(on_connect, Mapping):
        hooks.update(on_connect)
    else:
        hooks = dict.fromkeys(hooks, on_connect)
    found = Registry()
    for name, participant in settings.participants.items():
        found.add(
            PostgresParticipant(
                name, participant, ledger_id=ledger_id, handles=handles, on_connect=hooks.pop(name, None)
            )
        )
    for name in hooks:
        raise UnknownParticipant(name, list(settings.participants))
    return found


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Ledger, Registry]]:
    """The ledger and the participants of the settings; both are closed on exit. Raises ``LedgerError``."""
    from coordinator.ledger import open_ledger  # noqa: PLC0415

    async with contextlib.AsyncExitStack() as stack:
        ledger = await open_ledger(settings.ledger)
        stack.push_async_callback(ledger.close)
        participants = registry(settings, ledger.ledger_id)
        stack.push_async_callback(participants.close)
        yield ledger, participants
