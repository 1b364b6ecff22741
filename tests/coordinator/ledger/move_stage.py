"""Four places for ledgers, one of each backend, and a ledger with a record of every kind."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.node.cluster import Cluster
from tests.etcd import EtcdCluster
from tests.servers import Server, fresh_database
from undoubt.coordinator.ledger import maintenance, open_ledger
from undoubt.coordinator.ledger.acting import new_act
from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.contract import BranchRecord, Heuristic, Session
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.ids import Protocol, TxId

KINDS = ("sqlite", "postgresql", "raft", "etcd")
BRANCHES = (BranchRecord(1, "orders", 2**40, 2**62, "00000001", history="h", position=7),)
OTHERS = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))
KEPT, FREED = "paid-7", "given-up"


class Places:
    """The URLs of the places, by kind; no ledger is there yet, and a new cluster at that of raft. ``wait``:
    other ones of the same kind have a number behind it."""

    def __init__(self, urls: dict[str, str]) -> None:
        self.urls = urls

    def settings(self, kind: str) -> LedgerSettings:
        return LedgerSettings(url=self.urls[kind], request_timeout_s=30.0)

    @asynccontextmanager
    async def opened(self, kind: str, *, create: bool = False) -> AsyncIterator[Signing]:
        """The ledger of a place, as an application opens it."""
        settings = self.settings(kind)
        if create:
            await maintenance.init(settings)
        ledger = await open_ledger(settings, serves=True)
        try:
            yield Signing(ledger)
        finally:
            await ledger.close()


@asynccontextmanager
async def places(folder: Path, server: Server, etcd: EtcdCluster, *kinds: str) -> AsyncIterator[Places]:
    """Those of ``kinds``: a kind, or a kind and a number."""
    urls: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        for kind in kinds:
            own = folder / kind
            own.mkdir()
            if kind.startswith("sqlite"):
                urls[kind] = f"sqlite:///{own}/ledger.db"
            elif kind.startswith("postgresql"):
                dsn = await stack.enter_async_context(fresh_database(server, "ledger"))
                urls[kind] = dsn.replace("postgresql://", "postgresql+psycopg://")
            elif kind.startswith("raft"):
                cluster = Cluster(own, 1)
                await cluster.start()
                stack.push_async_callback(cluster.stop)
                urls[kind] = cluster.settings.url
            else:
                urls[kind] = f"{etcd.url}/test-{secrets.token_hex(4)}"
        yield Places(urls)


@dataclass
class Filled:
    """What :func:`fill` has recorded, by what it is."""

    session: Session
    token: int = 0
    txids: dict[str, TxId] = field(default_factory=dict)
    bound: TxId | None = None


async def fill(ledger: Signing) -> Filled:
    """A record of every kind; all sessions are closed."""
    session = await ledger.open_session("filler", 60.0)
    filled = Filled(session)
    names = ("done", "aborted done", "committed", "aborted", "undecided", "precommitted", "keyed", "claimed")
    filled.txids = {name: session.txid(seq) for seq, name in enumerate(names, 1)}
    for name in ("done", "committed"):
        await ledger.decide(filled.txids[name], Decision.COMMIT, OTHERS)
    for name in ("aborted done", "aborted"):
        await ledger.decide(filled.txids[name], Decision.ABORT, BRANCHES, cause="an operator")
    await ledger.precommit(filled.txids["precommitted"], BRANCHES)
    for name, key in (("keyed", KEPT), ("claimed", FREED)):
        await ledger.claim_key(filled.txids[name], key, ledger.key_proof(filled.txids[name], key))
    keyed = filled.txids["keyed"]
    tagged = ledger.tagged(keyed, BRANCHES, Protocol.TWO_PHASE)
    await ledger.commit_key(keyed, KEPT, ledger.key_proof(keyed, KEPT), b"result", tagged)
    await ledger.finish([filled.txids["done"], filled.txids["aborted done"]])
    await ledger.keep_alive(session, 3)
    entry = await ledger.lock(LockRequest("door", session.id, session.nonce, 1), wait=False)
    assert entry is not None
    filled.token = entry.token
    for name, kind in (("committed", Settled.HEURISTIC_HAZARD), ("done", Settled.HEURISTIC_ROLLBACK)):
        gid = ledger.gid(filled.txids[name])
        await ledger.record_heuristic(Heuristic(gid, kind, Decision.COMMIT, time.time(), "seen"))
    assert await ledger.forget_heuristic(ledger.gid(filled.txids["done"]))
    for number in range(3):
        await ledger.record_act(new_act("tx resolve", f"number {number}", "why", result="done"))
    agent = AgentBinding("orders", 2**62, "history")
    bound = await ledger.open_session("bound", 60.0, agent=agent)
    filled.bound = bound.txid(1)
    await ledger.close_session(bound)
    await ledger.close_session(session)
    return filled


def acts_of(ledger_acts: object) -> list[tuple[str, str]]:
    """What of acts every backend keeps, in their order."""
    builtin = msgspec.to_builtins(ledger_acts)
    return [(act[1], act[2]) for act in builtin]
