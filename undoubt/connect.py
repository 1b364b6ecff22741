"""``undoubt.connect``: opens ledger, participants, recovery and coordinator for an application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from undoubt import wiring
from undoubt.config import Settings, load
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.protocols.steps import Observer
from undoubt.participants.bounds import choice, flag, having, text
from undoubt.participants.errors import WrongLoop

if TYPE_CHECKING:
    from undoubt.metrics import Metrics
    from undoubt.participants.postgres.connecting import Handles
    from undoubt.wiring import OnConnects


def _judge(
    *,
    observe: object,
    recover: object,
    metrics: object,
    handles: object,
    on_connect: object,
    create: object,
) -> None:
    """Check the arguments of ``connect``, before anything is opened. Raises ``UsageError``, which names the
    argument."""
    if observe is not None:
        having("observe", observe, "a function of a step and its subject")
    flag("recover", recover)
    if metrics is not None:
        having("metrics", metrics, "undoubt.metrics.Metrics", "timed", "ended")
    choice("handles", handles, ("async", "sync"))
    hooks = on_connect.items() if isinstance(on_connect, Mapping) else [("", on_connect)]
    for name, hook in hooks:
        text("a name in on_connect", name)
        if hook is not None:
            having("on_connect", hook, "a function of a connection, or a mapping from names to functions")
    flag("create", create)


@contextlib.asynccontextmanager
async def connect(
    source: str | PathLike[str] | Mapping[str, Any] | Settings | None = None,
    *,
    observe: Observer | None = None,
    recover: bool = True,
    metrics: Metrics | None = None,
    handles: Handles = "async",
    on_connect: OnConnects | None = None,
    create: bool = False,
) -> AsyncIterator[Coordinator]:
    """A running coordinator, for ``async with``.

    ``source`` is the path of an ``undoubt.toml``, a mapping with the same content, or ready settings; None
    takes the file that ``UNDOUBT_CONFIG`` names, or ``./undoubt.toml``, or the environment alone. ``connect``
    opens the ledger and, unless ``recover`` is False, resolves in-doubt branches in the background for as
    long as this process owns the ledger. A database is connected to when it is first used. ``observe`` is
    called with each step of protocols and of recovery; ``metrics`` (an :class:`undoubt.metrics.Metrics`)
    counts and times for Prometheus. ``handles`` is for :mod:`undoubt.sync`, whose branches are synchronous
    connections. ``on_connect`` is called with each new connection of branches before it is used
    (:mod:`undoubt.participants.postgres.on_connect`): one function for all participants, or a mapping from
    their names; it runs before the participant's ``init``.

    A missing ``sqlite:///`` ledger is made if nothing shows that it existed before, and every participant
    answers and has no branch that is prepared under the name of a ledger of this installation;
    ``create=True`` makes it without asking the participants. Otherwise ``LedgerMissing`` says what to do.

    On exit, transactions that have not begun to commit are aborted, and commits that are under way are
    finished. Raises ``ConfigurationError`` or ``LedgerError``, and ``WrongLoop`` if the block is left in
    another event loop than it was entered in.
    """
    _judge(
        observe=observe,
        recover=recover,
        metrics=metrics,
        handles=handles,
        on_connect=on_connect,
        create=create,
    )
    settings = source if isinstance(source, Settings) else load(source)
    async with contextlib.AsyncExitStack() as stack:
        ledger = await open_ledger(
            settings.ledger, create=create or (lambda: wiring.nothing_left(settings)), serves=True
        )
        stack.push_async_callback(ledger.close)
        if metrics is not None:
            ledger = metrics.timed(ledger)
        participants = wiring.registry(settings, ledger.ledger_id, handles=handles, on_connect=on_connect)
        stack.push_async_callback(participants.close)
        coordinator = Coordinator(ledger, participants, settings.coordinator, observe=observe, meter=metrics)
        if recover:
            service = wiring.recovery(
                settings, ledger, participants, coordinator, observe=observe, meter=metrics
            )
            await service.start()
            stack.push_async_callback(service.close)
        await stack.enter_async_context(coordinator)
        try:
            yield coordinator
        finally:
            try:
                coordinator.check_here()
            except WrongLoop:
                # The open connections belong to the other loop: they cannot be closed in this one.
                stack.pop_all()
                raise
