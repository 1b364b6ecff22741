"""Makes and verifies the header ``Undoubt-Transaction``, with which another service joins a transaction.

A capability names the ledger, the transaction, the address of its owner (the sidecar that began it), the
participants in which branches may be added, and when it expires. The owner seals it (HMAC-SHA256) with a key
that only its process has: the transactions of a process end with the process, and so do its capabilities. A
capability is accepted only together with a client's token or certificate, and does not allow commit or
rollback.

A sidecar that is not the owner cannot verify the seal. It uses only those values of the header that the
ledger confirms (:mod:`.peers`)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time

import msgspec

from undoubt.participants.ids import InvalidName, TxId
from undoubt.serve.sidecar.problems import RequestRefused
from undoubt.serve.sidecar.settings import EVERYTHING

HEADER = "undoubt-transaction"
CHARACTERS_MAX = 8192
_VERSION = 1


class Capability(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``expires``: seconds since 1970. ``owner``: the address of the sidecar that began the transaction."""

    v: int
    ledger: str
    transaction: str
    owner: str
    participants: tuple[str, ...]
    expires: float

    def __repr__(self) -> str:
        return f"Capability({self.transaction!r})"

    @property
    def txid(self) -> TxId:
        return TxId.parse(self.transaction)

    def may_use(self, participant: str) -> bool:
        return EVERYTHING in self.participants or participant in self.participants


class SealedCapability(msgspec.Struct, frozen=True):
    """The parsed header; nothing in it is verified yet."""

    capability: Capability
    payload: bytes
    seal: bytes

    def __repr__(self) -> str:
        return f"SealedCapability({self.capability!r})"

    @property
    def text(self) -> str:
        """As it is sent."""
        return f"{_encoded(self.payload)}.{_encoded(self.seal)}"


def parse(text: str) -> SealedCapability:
    """Parse a header. Raises :class:`RequestRefused`, which never contains the header."""
    bad = RequestRefused(
        400, "BadCapability", "the header Undoubt-Transaction is not one that a sidecar made"
    )
    payload, dot, seal = text.strip().partition(".")
    if not dot or len(text) > CHARACTERS_MAX:
        raise bad
    try:
        raw = _decoded(payload)
        capability = msgspec.json.decode(raw, type=Capability)
        capability.txid  # noqa: B018 - raises
        found = SealedCapability(capability, raw, _decoded(seal))
    except (msgspec.MsgspecError, binascii.Error, InvalidName, ValueError):
        raise bad from None
    if capability.v != _VERSION:
        raise bad
    return found


class Sealer:
    """Makes and verifies capabilities with the key of this process."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def issue(self, ledger: str, txid: TxId, owner: str, participants: frozenset[str], expires: float) -> str:
        """The header's value."""
        capability = Capability(_VERSION, ledger, str(txid), owner, tuple(sorted(participants)), expires)
        payload = msgspec.json.encode(capability)
        return SealedCapability(capability, payload, self._seal(payload)).text

    def check(self, shown: SealedCapability) -> None:
        """Raise :class:`RequestRefused` unless this process sealed the capability."""
        if not hmac.compare_digest(self._seal(shown.payload), shown.seal):
            raise RequestRefused(
                403, "CapabilityForged", "this sidecar did not make that Undoubt-Transaction"
            )

    def _seal(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, b"capability\0" + payload, hashlib.sha256)


def check_current(capability: Capability, ledger_id: str, transaction: str) -> None:
    """Raise :class:`RequestRefused` if the capability has another ledger or transaction, or has expired."""
    if capability.ledger != ledger_id:
        raise RequestRefused(403, "OtherLedger", "that Undoubt-Transaction is of another ledger")
    if capability.transaction != transaction:
        raise RequestRefused(403, "OtherTransaction", "that Undoubt-Transaction is of another transaction")


def expired(capability: Capability) -> bool:
    """Whether the capability has expired by the wall clock of this machine. The owner applies its own
    deadline."""
    return time.time() >= capability.expires


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
