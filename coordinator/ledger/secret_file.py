"""A ledger's secret in a file of its own: what is needed to know its names once the ledger is lost.

::

    undoubt-secret 1\n    ledger id    space    secret in hexadecimal    \n

Every backup of a ledger holds the secret too; this file is for a ledger that is backed up in another way, or
not at all. Whoever has it can make names of the ledger: keep it as you keep passwords."""

from __future__ import annotations

from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.durable import write_new
from undoubt.participants.ids import InvalidName, check_ledger_id

HEAD = "undoubt-secret 1"


def write(path: Path, ledger_id: str, secret: bytes) -> None:
    """Durable, mode 0600. Raises ``LedgerUnusable`` if there is such a file, or it cannot be written."""
    write_new(path, f"{HEAD}\n{ledger_id} {secret.hex()}\n".encode("ascii"), "a secret")


def read(path: Path) -> tuple[str, bytes] | None:
    """The ledger's id and its secret; None if the file is none of this kind. Raises ``LedgerUnusable`` if it
    cannot be read, or is damaged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LedgerUnusable(f"cannot read {path}: {error.strerror or error}") from error
    if not content.startswith(HEAD.encode()):
        return None
    try:
        ledger_id, secret = content.decode("ascii").splitlines()[1].split(" ")
        return check_ledger_id(ledger_id), bytes.fromhex(secret)
    except (ValueError, IndexError, InvalidName) as error:
        raise LedgerUnusable(f"{path} is damaged: it holds no ledger id and secret") from error
