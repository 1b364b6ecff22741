"""What a backend does for a move: reads, writes and marks a whole ledger at one place.

No call opens the ledger for transactions. Each may be repeated after a crash of the moving process, and each
changes the place in one atomic step, except :meth:`LedgerPlace.write`, whose result is marked *arriving*
until :meth:`LedgerPlace.settle`."""

from __future__ import annotations

from typing import Protocol

from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase, MoveStatus
from undoubt.coordinator.ledger.moving.image import LedgerImage


class LedgerPlace(Protocol):
    """A place of a ledger. Calls raise ``LedgerError``; ``MoveRefused`` if the place is not as it must be."""

    @property
    def url(self) -> str:
        """The URL, without a password."""
        ...

    async def look(self) -> MoveStatus | None:
        """What is there; None if there is no ledger."""
        ...

    async def seal(self, mark: MoveMark) -> None:
        """Seal the ledger, which lives here: afterwards it records and answers nothing. Refused while a
        session is open. Nothing that was begun before is recorded afterwards."""
        ...

    async def settle(self, move: str, phase: MovePhase | None) -> None:
        """Bring the mark of ``move`` into ``phase``; None: remove the mark *sealed*."""
        ...

    async def read(self) -> LedgerImage:
        """The whole ledger, which is sealed or arriving, as it is stored."""
        ...

    def fitted(self, image: LedgerImage) -> LedgerImage:
        """``image`` as it will be kept here. Raises ``MoveRefused`` if a record cannot be kept here."""
        ...

    async def write(self, image: LedgerImage) -> None:
        """Store ``image``, whose mark is *arriving*, in place of what is there, if that may be replaced
        (:meth:`~..move_mark.MoveStatus.takes`)."""
        ...

    async def close(self) -> None: ...
