"""A cluster's ledger as a place of a move. The nodes run; a ledger is moved to a new cluster."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from undoubt.coordinator.errors import MoveRefused
from undoubt.coordinator.ledger.cluster import admin
from undoubt.coordinator.ledger.commands import ReceiveState, SealLedger, SettleMove
from undoubt.coordinator.ledger.contract import SessionState
from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase, MoveStatus
from undoubt.coordinator.ledger.moving.image import LedgerImage
from undoubt.coordinator.ledger.state import LedgerState
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.invariant import invariant
from undoubt.participants.redact import redact

PIECE_BYTES = 1024 * 1024
"""The size of one entry of the log with a piece of the state."""


class _NodeImage(msgspec.Struct, array_like=True):
    """The first fields of a node's image (``coordinator/node/fsm.py``)."""

    format: int
    addresses: Any
    ledger: bytes


class ClusterPlace:
    def __init__(self, settings: LedgerSettings) -> None:
        self.url = redact(settings.url)
        self._settings = settings

    async def look(self) -> MoveStatus:
        return await admin.move_step(self._settings)

    async def seal(self, mark: MoveMark) -> None:
        await self._check_acceptors(
            "The leader records their outcomes within seconds; repeat the command then. Nothing was changed"
        )
        await admin.move_step(self._settings, SealLedger(mark))

    async def _check_acceptors(self, advice: str) -> None:
        """Check that every transaction of Paxos Commit that an acceptor knows is recorded in the ledger:
        acceptors do not move. Raises ``MoveRefused`` with ``advice``, ``LedgerError``."""
        books = (await self._state()).sessions.values()
        bound = {book.id: book.acceptors for book in books if book.acceptors}
        ended = {book.id for book in books if book.state is not SessionState.OPEN}
        if set(bound) - ended:
            return  # the seal is refused because of them
        if undecided := await admin.held(self._settings, bound):
            listed = ", ".join(map(str, undecided[:10]))
            raise MoveRefused(
                f"acceptors of Paxos Commit have transactions that the ledger has not: {listed}. {advice}"
            )

    async def settle(self, move: str, phase: MovePhase | None) -> None:
        if phase is MovePhase.MOVED:  # a coordinator whose session had ended may have voted meanwhile
            await self._check_acceptors(
                "Their votes came after the ledger was sealed: `undoubt ledger move --undo`, then move again"
            )
        await admin.move_step(self._settings, SettleMove(move, phase))

    async def read(self) -> LedgerImage:
        return LedgerImage(await self._state())

    async def _state(self) -> LedgerState:
        _, _, image = await admin.image(self._settings, note="ledger move")
        return LedgerState.decode(msgspec.msgpack.decode(image, type=_NodeImage).ledger)

    def fitted(self, image: LedgerImage) -> LedgerImage:
        """Without details: each node keeps those of the transactions that it has seen finish."""
        return LedgerImage(image.state)

    async def write(self, image: LedgerImage) -> None:
        state, mark = image.state, image.state.move
        invariant(mark is not None, "an image that is moved has no mark")
        whole = state.encode()
        digest = hashlib.sha256(whole).hexdigest()
        pieces = [whole[at : at + PIECE_BYTES] for at in range(0, len(whole), PIECE_BYTES)]
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            if mark is not None:
                command = ReceiveState(mark, state.ledger_id, number, piece, digest if last else "")
                await admin.move_step(self._settings, command)

    async def close(self) -> None:
        """Nothing is open between two calls."""
