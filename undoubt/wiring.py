"""Makes the ledger and the participants of one process from its settings.

``undoubt.connect`` and the command line use it. Drivers and SQLAlchemy are imported here, when they are first
needed; the modules that use this one do not import them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from undoubt.coordinator.errors import LedgerMissing
from undoubt.participants.errors import UnknownParticipant
from undoubt.participants.ids import Gid, Protocol, new_ledger_id
from undoubt.participants.redact import redact
from undoubt.participants.registry import Registry

if TYPE_CHECKING:
    from undoubt.config import Settings
    from undoubt.coordinator.coordinator import Coordinator
    from undoubt.coordinator.ledger.contract import Ledger
    from undoubt.coordinator.protocols.steps import Observer
    from undoubt.participants.postgres.connecting import Handles
    from undoubt.participants.postgres.on_connect import OnConnect
    from undoubt.recovery.lost import LeftoverBranches
    from undoubt.recovery.meter import RecoveryMeter
    from undoubt.recovery.service import RecoveryService

    OnConnects = OnConnect | Mapping[str, OnConnect]


def registry(
    settings: Settings,
    ledger_id: str,
    *,
    handles: Handles = "async",
    on_connect: OnConnects | None = None,
) -> Registry:
    """The participants of the settings, not yet connected to. The caller closes the registry. ``handles``:
    whether branches give the application asynchronous or synchronous connections. ``on_connect``: a hook for
    new connections, or a mapping from participants' names to hooks. Raises ``UnknownParticipant`` if a hook
    is for an unknown name."""
    # Imported here: a process without participants needs no driver.
    from undoubt.participants.postgres import PostgresParticipant  # noqa: PLC0415

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


def recovery(
    settings: Settings,
    ledger: Ledger,
    participants: Registry,
    coordinator: Coordinator,
    *,
    observe: Observer | None,
    meter: RecoveryMeter | None,
) -> RecoveryService:
    """The recovery of a process that also coordinates transactions, not yet started."""
    # Imported here: most commands need no recovery.
    from undoubt.recovery.deadlocks import may_be_stuck  # noqa: PLC0415
    from undoubt.recovery.service import RecoveryService  # noqa: PLC0415

    return RecoveryService(
        ledger,
        participants,
        settings.recovery,
        observe=observe,
        cancel=coordinator.cancel,
        meter=meter,
        stuck=lambda: may_be_stuck(coordinator.live),
    )


async def left_prepared(settings: Settings) -> LeftoverBranches:
    """The branches that a lost ledger has left in the participants of the settings."""
    from undoubt.recovery.lost import branches_left  # noqa: PLC0415 - its imports are needed only if a ledger is missing

    participants = registry(settings, new_ledger_id())
    try:
        return await branches_left(participants)
    finally:
        await participants.close()


async def prepared_with_acceptors(settings: Settings, ledger_id: str) -> list[str]:
    """The prepared branches of Paxos Commit of ledger ``ledger_id``, if a cluster keeps it. Raises
    ``ParticipantError`` if a participant does not answer."""
    if not settings.ledger.url.startswith("raft://"):
        return []
    participants = registry(settings, ledger_id)
    try:
        listed = [branch for each in participants for branch in await each.in_doubt()]
    finally:
        await participants.close()
    gids = [branch.gid for branch in listed if isinstance(branch.gid, Gid)]
    return [str(gid) for gid in gids if (gid.ledger, gid.protocol) == (ledger_id, Protocol.PAXOS)]


async def nothing_left(settings: Settings) -> None:
    """Check before a ledger is made without an operator's command: every participant of the settings answers,
    and has no branch of this installation. Raises ``LedgerMissing``."""
    left = await left_prepared(settings)
    url = redact(settings.ledger.url)
    if left.branches:
        raise LedgerMissing(
            f"no ledger at {url}, and {left.in_words()}: either this installation had that ledger, or another"
            " installation uses the same databases. No ledger was made. Look for the former ledger, or"
            " restore it from a backup: `undoubt ledger restore BACKUP`. If it is lost: `undoubt ledger init`"
            f" makes a new one, and `undoubt recover --adopt {left.ledgers[0]}` ends the branches that it has"
            " left. If it is another installation's, name it in the participants' other_ledgers"
        )
    if left.unreachable:
        names = "; ".join(f"{name} does not answer ({error})" for name, error in left.unreachable.items())
        raise LedgerMissing(
            f"no ledger at {url}, and it is not known whether there was one: {names}. No ledger was made."
            " To make a new ledger: `undoubt ledger init`"
        )


@contextlib.asynccontextmanager
async def opened(settings: Settings, *, serves: bool = False) -> AsyncIterator[tuple[Ledger, Registry]]:
    """The ledger and the participants of the settings; both are closed on exit. ``serves``: see
    ``open_ledger``. Raises ``LedgerError``."""
    from undoubt.coordinator.ledger import open_ledger  # noqa: PLC0415

    async with contextlib.AsyncExitStack() as stack:
        ledger = await open_ledger(settings.ledger, serves=serves)
        stack.push_async_callback(ledger.close)
        participants = registry(settings, ledger.ledger_id)
        stack.push_async_callback(participants.close)
        yield ledger, participants
