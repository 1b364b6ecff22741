"""Reads the secret of a lost ledger from a secret file, or from a backup of a ledger or a cluster."""

from __future__ import annotations

from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger import backup, secret_file
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.participants.errors import UsageError


def read_secret(path: Path, ledger_id: str) -> bytes:
    """The secret of ledger ``ledger_id`` in the file ``path``. Raises ``LedgerUnusable``, and ``UsageError``
    if the file is of another ledger."""
    found = secret_file.read(path)
    if found is None:
        found = _of_backup(path)
    whose, secret = found
    if whose != ledger_id:
        raise UsageError(f"{path} is of ledger {whose}, not of {ledger_id}")
    if not secret:
        raise LedgerUnusable(f"{path} has no secret: it was written before the ledger had a secret")
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
