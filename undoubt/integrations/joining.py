"""The transaction of a sidecar that the current task or thread works in: what :mod:`.httpx` sends to other
services and :mod:`.starlette` takes from them.

It is a context variable: tasks that are begun within see it, other requests do not."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import msgspec

from undoubt.participants.bounds import text
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import InvalidName, TxId

HEADER = "Undoubt-Transaction"
HEADER_CHARACTERS_MAX = 8192

_current: ContextVar[JoinedTransaction | None] = ContextVar("undoubt_sidecar_transaction", default=None)


class _Payload(msgspec.Struct, frozen=True):
    """What a client reads of a capability."""

    transaction: str


@dataclass(frozen=True, slots=True)
class JoinedTransaction:
    """A transaction of a sidecar. ``header`` is the value of ``Undoubt-Transaction``, a secret; ``id`` is
    what it claims, which the sidecar verifies."""

    id: str
    header: str

    def __repr__(self) -> str:
        return f"JoinedTransaction({self.id!r})"

    @classmethod
    def parse(cls, header: str) -> JoinedTransaction:
        """Raises ``UsageError``, which does not show the header."""
        text("header", header, most=HEADER_CHARACTERS_MAX * 4)
        payload, _, seal = header.strip().partition(".")
        bad = UsageError(f"the header {HEADER} is not one that a sidecar made")
        if not seal or len(header) > HEADER_CHARACTERS_MAX:
            raise bad
        try:
            raw = base64.b64decode(payload + "=" * (-len(payload) % 4), altchars=b"-_", validate=True)
            txid = TxId.parse(msgspec.json.decode(raw, type=_Payload).transaction)
        except (ValueError, binascii.Error, msgspec.MsgspecError, InvalidName):
            raise bad from None
        return cls(str(txid), header.strip())


def current() -> JoinedTransaction | None:
    """The transaction in which this code works; None outside of one."""
    return _current.get()


@contextlib.contextmanager
def working_in(transaction: JoinedTransaction | None) -> Iterator[None]:
    """Within, :func:`current` is that one."""
    token = _current.set(transaction)
    try:
        yield
    finally:
        _current.reset(token)
