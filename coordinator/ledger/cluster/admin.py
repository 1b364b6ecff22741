"""Changes a running cluster for an operator: its members, its leader, snapshots, a backup.

All calls may be repeated. They raise ``ClusterRefused`` with the reason, ``LedgerUnavailable`` if no node
that can carry them out answers in time, and ``LedgerMisconfigured`` for an invalid URL or TLS files."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from random import SystemRandom

import msgspec

from undoubt.coordinator.errors import (
    ClusterNotReady,
    ClusterRefused,
    LedgerError,
    LedgerUnavailable,
    VersionHeldBack,
)
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.acting import DONE, new_act
from undoubt.coordinator.ledger.cluster.ledger import LeaderClient
from undoubt.coordinator.ledger.cluster.messages import (
    SESSIONS_MAX,
    BackupCall,
    BackupPiece,
    ChangeMembersCall,
    HeldCall,
    MemberChange,
    MoveCall,
    NodeStatus,
    SnapshotCall,
    StatusCall,
    TransferCall,
)
from undoubt.coordinator.ledger.cluster.status import ask
from undoubt.coordinator.ledger.cluster.url import addresses_of, wire_of
from undoubt.coordinator.ledger.commands import MovingCommand
from undoubt.coordinator.ledger.contract import Act
from undoubt.coordinator.ledger.move_mark import MoveStatus
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import (
    PeerIdentity,
    PeerRole,
)
from undoubt.participants.ids import TxId

IMAGE_ATTEMPTS_MAX = 5
WAIT_S = 5.0


async def change_members(
    settings: LedgerSettings, changes: Sequence[MemberChange], *, wait_s: float = WAIT_S, note: str = ""
) -> NodeStatus:
    """Make all ``changes`` in one step; returns the leader's status afterwards. As long as a node that has to
    take part does not answer or is behind, the call is repeated for up to ``wait_s`` seconds. ``note``: the
    reason, for the record of the act."""
    verb = "cluster " + " ".join(sorted({change.kind for change in changes}))
    act = new_act(verb, "node " + " ".join(str(change.node) for change in changes), note)
    return await _until_ready(settings, ChangeMembersCall(tuple(changes), act), wait_s)


async def transfer(
    settings: LedgerSettings, to: int = 0, *, wait_s: float = WAIT_S, note: str = ""
) -> NodeStatus:
    """Transfer the leadership to node ``to``, or with 0 to the most suitable node; returns the status of the
    node that led. ``note`` is for the record of the act."""
    async with _route(settings) as route:
        status: NodeStatus = await route.ask(StatusCall(), settings.request_timeout_s)
    act = new_act("cluster transfer", f"node {to}" if to else "the most suitable node", note)
    return await _until_ready(settings, TransferCall(to, status.node, act), wait_s)


async def _until_ready(
    settings: LedgerSettings, call: ChangeMembersCall | TransferCall, wait_s: float
) -> NodeStatus:
    loop = asyncio.get_running_loop()
    end = loop.time() + wait_s
    async with _route(settings) as route:
        while True:
            try:
                status: NodeStatus = await route.ask(call, settings.request_timeout_s)
            except ClusterNotReady:
                if loop.time() >= end:
                    raise
            except VersionHeldBack:
                if call.act is None:
                    raise
                call = msgspec.structs.replace(call, act=None)  # older nodes keep no record of acts
            else:
                await _record_done(route, call.act, settings.request_timeout_s)
                return status


async def _record_done(route: LeaderClient, act: Act | None, timeout_s: float) -> None:
    """Record the result of ``act``: the node that carried it out may no longer lead or exist."""
    if act is not None:
        with contextlib.suppress(LedgerError):
            done = msgspec.structs.replace(act, result=DONE)
            await route.ask(calls.RecordActCall(done.clipped()), timeout_s)


async def snapshot(settings: LedgerSettings, address: str) -> int:
    """Have the node at ``address`` store a snapshot; returns the index of its last entry."""
    index: int = await ask(address, SnapshotCall(), settings.request_timeout_s, wire_of(settings))
    return index


class Acts:
    """Records acts that are not calls to a node."""

    def __init__(self, settings: LedgerSettings) -> None:
        self._settings = settings

    async def record_act(self, act: Act) -> None:
        """Record ``act`` at the leader. Raises ``LedgerError``."""
        async with _route(self._settings) as route:
            await route.ask(calls.RecordActCall(act.clipped()), self._settings.request_timeout_s)


async def image(settings: LedgerSettings, *, note: str = "") -> tuple[NodeStatus, BackupPiece, bytes]:
    """The whole replicated state as it is now: the status of the node that sent it, the last piece, and all
    its bytes. The act is recorded, with ``note``."""
    act: Act | None = new_act("cluster backup", "the ledger", note)
    async with _route(settings) as route:
        status: NodeStatus = await route.ask(StatusCall(), settings.request_timeout_s)
        for _ in range(IMAGE_ATTEMPTS_MAX):
            try:
                pieces: list[bytes] = []
                while True:
                    offset = sum(map(len, pieces))
                    call = BackupCall(offset, None if offset else act)
                    piece: BackupPiece = await route.ask(call, settings.request_timeout_s)
                    pieces.append(piece.data)
                    if offset + len(piece.data) == piece.size:
                        return status, piece, b"".join(pieces)
            except ClusterRefused:
                continue  # another leader or connection, which has no image
            except VersionHeldBack:
                if act is None:
                    raise
                act = None  # older nodes keep no record of acts
    raise LedgerUnavailable("the leader changed too often during the backup; try again")


async def move_step(settings: LedgerSettings, command: MovingCommand | None = None) -> MoveStatus:
    """Have the leader apply a command of a move, if there is one; returns what a move finds there. Raises
    ``MoveRefused``."""
    async with _route(settings) as route:
        status: MoveStatus = await route.ask(MoveCall(command), settings.request_timeout_s)
        return status


async def held(settings: LedgerSettings, sessions: Mapping[int, Sequence[int]]) -> list[TxId]:
    """The transactions that acceptors of ended ``sessions``, which are given with their acceptors, have and
    the ledger has not. All these nodes have to answer. Raises ``LedgerError``."""
    async with _route(settings) as route:
        status: NodeStatus = await route.ask(StatusCall(), settings.request_timeout_s)
    found: list[TxId] = []
    for node in sorted({node for acceptors in sessions.values() for node in acceptors}):
        if (address := status.nodes.get(node)) is None:
            continue  # it has left, which it may only after its transactions were decided
        call = HeldCall(tuple(sorted(sessions))[:SESSIONS_MAX])
        found += await ask(address, call, settings.request_timeout_s, wire_of(settings))
    return sorted(set(found))


@contextlib.asynccontextmanager
async def _route(settings: LedgerSettings) -> AsyncIterator[LeaderClient]:
    me = PeerIdentity(PeerRole.CLIENT, name=f"process {os.getpid()}")
    route = LeaderClient(addresses_of(settings.url), me, wire_of(settings), SystemRandom())
    try:
        yield route
    finally:
        await route.close()
