"""Serves the console of a node, at an address of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from undoubt import wiring
from undoubt.config import Settings
from undoubt.coordinator.ledger import open_ledger
from undoubt.participants.errors import UsageError
from undoubt.serve.console.app import ConsoleApp
from undoubt.serve.console.console import of_node
from undoubt.serve.sidecar.peers import is_loopback
from undoubt.serve.sidecar.sockets import listening
from undoubt.serve.sidecar.tokens import Doorkeeper


def check(settings: Settings) -> None:
    """Raise ``UsageError`` if with these settings no client could use the console, or any machine could."""
    console = settings.console
    host, _ = console.server.address
    if not console.tokens:
        raise UsageError(
            "node.console without console.tokens: TCP does not identify the client. Make a token:"
            ' undoubt sidecar --new-token NAME, and put it into [[console.tokens]] with roles = ["observe"]'
        )
    if not is_loopback(host) and not console.tls_cert:
        raise UsageError(
            f"console.listen = {console.listen!r} is open to other machines: it needs console.tls_cert and"
            " tls_key"
        )


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """Serve the console of the node of ``settings``, whose cluster answers; the value is its address. Raises
    ``UsageError``, ``LedgerError``."""
    async with contextlib.AsyncExitStack() as stack:
        ledger = await open_ledger(settings.ledger)
        stack.push_async_callback(ledger.close)
        participants = wiring.registry(settings, ledger.ledger_id)
        stack.push_async_callback(participants.close)
        console = of_node(settings, ledger, participants)
        stack.push_async_callback(console.close)
        console.start()
        server = settings.console.server
        app = ConsoleApp(console, Doorkeeper(server, "console"))
        [place] = await stack.enter_async_context(listening(app, server, "console"))
        stack.callback(console.feed.end)
        yield place
