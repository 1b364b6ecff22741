"""The ledger's contract on a cluster of nodes, for a process outside of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from random import Random, SystemRandom
from typing import Any

from coordinator.errors import LedgerUnusable, WrongProcess
from coordinator.ledger import calls
from coordinator.ledger.calling import CallingLedger
from coordinator.ledger.cluster.route import Route
from coordinator.settings import LedgerSettings
from coordinator.wire import Address, Identity, Role, TlsUnusable, WireSettings, tls_of
from participants.redact import redact

RAFT = "raft://"
PORT = 7400


class ClusterLedger(CallingLedger):
    """Made by :meth:`open`. Belongs to the event loop and the process in which it was opened."""

    def __init__(self, route: Route, settings: LedgerSettings) -> None:
        self.settings = settings
        self._route = route
        self._pid = os.getpid()
        self._ledger_id = ""
        self._random: Random = SystemRandom()

    @classmethod
    async def open(
        cls,
        settings: LedgerSettings,
        wire: WireSettings | None = None,
        *,
        random: Random | None = None,
        name: str = "",
    ) -> ClusterLedger:
        """Find the cluster's leader. ``random`` draws nonces and pauses. Raises ``LedgerUnusable`` for a URL
        that is none and for TLS files of no use, ``LedgerUnavailable`` if nobody leads within
        ``request_timeout_s``."""
        random = random or SystemRandom()
        me = Identity(Role.CLIENT, name=name or f"process {os.getpid()}")
        route = Route(addresses_of(settings.url), me, wire or wire_of(settings), random)
        ledger = cls(route, settings)
        ledger._random = random
        try:
            await ledger.info()
        except BaseException:
            await route.close()
            raise
        return ledger

    @property
    def ledger_id(self) -> str:
        return self._ledger_id

    @property
    def leads(self) -> bool:
        """Recovery runs where a node leads, not in its clients."""
        return False

    async def close(self) -> None:
        if os.getpid() == self._pid:
            await self._route.close()

    def _nonce(self) -> str:
        return f"{self._random.getrandbits(64):016x}"

    async def _call(self, call: calls.Call) -> Any:
        if os.getpid() != self._pid:
            raise WrongProcess(
                f"this ledger was opened by process {self._pid}; open one of your own after a fork"
            )
        result = await self._route.ask(call, self.settings.request_timeout_s)
        if self._route.ledger_id != self._ledger_id:
            self._identify()
        return result

    def _identify(self) -> None:
        found = self._route.ledger_id
        if self._ledger_id not in {"", found}:
            raise LedgerUnusable(
                f"at {redact(self.settings.url)} there is another ledger now ({found}; it was"
                f" {self._ledger_id})"
            )
        self._ledger_id = found


def wire_of(settings: LedgerSettings) -> WireSettings:
    """How to speak with the cluster. Raises ``LedgerUnusable`` if the TLS files are of no use."""
    wire = settings.wire
    if wire.tls is not None:
        try:
            tls_of(wire.tls)
        except TlsUnusable as error:
            raise LedgerUnusable(f"ledger.tls_ca, tls_cert, tls_key: {error}") from error
    return wire


def addresses_of(url: str) -> Sequence[Address]:
    """The nodes of a ``raft://`` URL, in its order. Raises ``LedgerUnusable``."""
    try:
        return [Address.parse(text, port=PORT) for text in url.removeprefix(RAFT).rstrip("/").split(",")]
    except ValueError as error:
        raise LedgerUnusable(
            f"ledger URL {redact(url)!r}: {error}; for example"
            " raft://10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400"
        ) from None
