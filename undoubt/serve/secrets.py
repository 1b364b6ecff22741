"""The secret of a ledger that is lost: from a file of its own, or from a backup of a ledger or a cluster."""

from __future__ import annotations

from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger import backup, secret_file
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.participants.errors import UsageError


def read_secret(path: Path, ledger_id: str) -> bytes:
    """Raises ``LedgerUnusable``, and ``UsageError`` if it is another ledger's."""
    found = secret_file.read(path)
    if found is None:
        found = _of_backup(path)
    whose, secret = found
    if whose != ledger_id:
        raise UsageError(f"{path} is of ledger {whose}, not of {ledger_id}")
    if not secret:
        raise LedgerUnusable(f"{path} holds no secret: it was written before the ledger had one")
    return secret


def _of_backup(path: Path) -> tuple[str, bytes]:
    kept = backup.read(path)
    machine = Machine("")
    with backup.reading_image(path):
        if kept.about.cluster:
            NodeStateMachine(machine, {}).restore(kept.image)
        else:
            machine.restore(kept.image)
    return machine.state.ledger_id, machine.state.secret
