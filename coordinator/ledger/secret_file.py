"""A file with a ledger's secret, which is needed to verify the ledger's names after the ledger is lost.

::

    undoubt-secret 1\n    ledger id    space    secret in hexadecimal    \n

Each backup of a ledger contains the secret too; this file is for a ledger that is backed up otherwise, or not
at all. A process that has the secret can forge names of the ledger: protect the file like passwords."""

from __future__ import annotations

from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.durable import write_new
from undoubt.participants.ids import InvalidName, check_ledger_id

HEAD = "undoubt-secret 1"


def write(path: Path, ledger_id: str, secret: bytes) -> None:
    """Write the file durably, with mode 0600. Raises ``LedgerUnusable`` if it exists or cannot be written."""
    write_new(path, f"{HEAD}\n{ledger_id} {secret.hex()}\n".encode("ascii"), "a secret")


def read(path: Path) -> tuple[str, bytes] | None:
    """The id of the ledger and its secret; None if the file is not such a file. Raises ``LedgerUnusable`` if
    it cannot be read or is damaged."""
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
