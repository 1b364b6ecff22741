"""Where settings become things: the ledger and the participants of one process.

``undoubt.connect`` and the command line build on it. Drivers and SQLAlchemy are imported here, when they are
first needed, and nowhere above.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from participants.registry import Registry

if TYPE_CHECKING:
    from coordinator.ledger.contract import Ledger
    from participants.postgres.drivers import Handles
    from undoubt.config import Settings


def registry(settings: Settings, ledger_id: str, *, handles: Handles = "async") -> Registry:
    """The participants of the settings, not yet connected to. Close it when done. ``handles``: what their
    branches give to the application, asynchronous or synchronous connections."""
    # A driver is needed by nobody who has no participant.
    from participants.postgres import PostgresParticipant  # noqa: PLC0415

    found = Registry()
    for name, participant in settings.participants.items():
        found.add(PostgresParticipant(name, participant, ledger_id=ledger_id, handles=handles))
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
