"""A console over a ledger in memory and scripted participants, served at a real port of this process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from tests.ports import free_ports
from tests.undoubt.sidecar.stage import token
from undoubt.config import Settings, load
from undoubt.coordinator.ledger.contract import Session, record_of
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.participants.contract import Decision, PreparedBranch
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import ScriptedParticipant
from undoubt.serve.console.app import ConsoleApp
from undoubt.serve.console.console import Console
from undoubt.serve.console.hour import LastHour
from undoubt.serve.sidecar.sockets import listening
from undoubt.serve.sidecar.tokens import Doorkeeper, hash_of

NAMES = ("orders", "payments")


@dataclass
class Rig:
    """``base``: where the console is."""

    base: str
    ledger: MemoryLedger
    participants: dict[str, ScriptedParticipant]
    console: Console
    doorkeeper: Doorkeeper
    settings: Settings
    session: Session
    app: ConsoleApp

    def gids(self, seq: int, protocol: Protocol = Protocol.TWO_PHASE) -> list[Gid]:
        """The names of one branch in each participant."""
        key = SessionKey(self.session.key)
        txid = self.session.txid(seq)
        return [
            Gid(self.ledger.ledger_id, protocol, txid, number, name).tagged(key)
            for number, name in enumerate(self.participants, 1)
        ]

    async def prepared(self, seq: int, *, votes: Sequence[str] = NAMES) -> list[Gid]:
        """A transaction with prepared branches at these participants."""
        gids = self.gids(seq)
        for gid in gids:
            if gid.participant in votes:
                branch = await self.participants[gid.participant].begin(gid, timeout_s=60.0)
                await branch.prepare()
        return gids

    async def decided(self, seq: int, decision: Decision = Decision.COMMIT, *, finish: bool = True) -> TxId:
        gids = self.gids(seq)
        txid = gids[0].txid
        await self.ledger.decide(txid, decision, [record_of(gid) for gid in gids])
        if finish:
            await self.ledger.finish([txid])
        return txid


class Timed(ScriptedParticipant):
    """Its branches were prepared when this object was made."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.since = time.time()

    async def in_doubt(self) -> Sequence[PreparedBranch]:
        found = await super().in_doubt()
        age_s = time.time() - self.since
        return [
            one if one in self.foreign else replace(one, prepared_at=self.since, age_s=age_s) for one in found
        ]


def tokens() -> list[dict[str, object]]:
    """Of a client that may look, of one that may act, and of one that may do neither."""
    roles = {"watcher": ["observe"], "operator": ["operate", "observe"], "shop": ["transact"]}
    return [
        {"name": name, "sha256": hash_of(token(name)), "roles": each, "participants": ["*"]}
        for name, each in roles.items()
    ]


@asynccontextmanager
async def rig(*, counts_rows: bool = False) -> AsyncIterator[Rig]:
    [port] = free_ports(1)
    settings = load(
        {
            "ledger": {"url": "memory://"},
            "console": {"listen": f"127.0.0.1:{port}", "tokens": tokens()},
        }
    )
    async with AsyncExitStack() as stack:
        ledger = MemoryLedger()
        session = await ledger.open_session("shop", 3600.0)
        participants = {name: Timed(name) for name in NAMES}
        registry = Registry()
        for one in participants.values():
            registry.add(one)
        console = Console(
            settings, ledger, registry, "sidecar", LastHour("Of this test."), counts_rows=counts_rows
        )
        stack.push_async_callback(console.close)
        console.start()
        server = settings.console.server
        doorkeeper = Doorkeeper(server)
        app = ConsoleApp(console, doorkeeper)
        [base] = await stack.enter_async_context(listening(app, server, "console"))
        stack.callback(console.feed.end)
        found: dict[str, ScriptedParticipant] = {**participants}
        yield Rig(base, ledger, found, console, doorkeeper, settings, session, app)
