"""What travels between a caller and the process that it asks, as msgpack arrays.

A caller numbers its requests; the answers have the same numbers and may come in any order. An error travels
as :class:`Failed`, and is raised again on the other side as what it was. Between the nodes of a cluster and
their clients a frame is a list of requests or of answers; the owner of a SQLite ledger is sent, and sends,
one for each frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from undoubt.coordinator.errors import (
    BranchListMismatch,
    ClusterNotReady,
    ClusterRefused,
    Impostor,
    LedgerUnavailable,
    NotPermitted,
    OutcomeUnknown,
    SessionLost,
    VersionHeldBack,
)
from undoubt.coordinator.wire.settings import FRAME_BYTES_MAX
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.participants.ids import TxId

REQUESTS_PER_FRAME_MAX = 1_000
CALL_BYTES_MAX = FRAME_BYTES_MAX // 2
"""A frame has room for this and for what goes around it."""

C = TypeVar("C")


class Request(msgspec.Struct, Generic[C], frozen=True, array_like=True, gc=False):
    """``number`` comes back with the answer. ``call`` is of a type that the one who is asked knows, or
    ``msgspec.Raw``: encoded already, or not read yet."""

    number: int
    call: C


class Reply(msgspec.Struct, frozen=True, array_like=True, tag="ok", gc=False):
    number: int
    result: msgspec.Raw


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """``kind`` is the name of the error's class."""

    number: int
    kind: str
    message: str
    txid: TxId | None = None
    recorded: tuple[str, ...] = ()
    given: tuple[str, ...] = ()


class LeaderHint(msgspec.Struct, frozen=True, array_like=True, tag="standing"):
    """A node of a cluster says it once, before anything is asked. ``leader`` is an address, empty where
    nobody is known to lead. ``ledger_id`` is empty on a node that has not learned of it yet."""

    ledger_id: str
    leads: bool
    leader: str


class Elsewhere(msgspec.Struct, frozen=True, array_like=True, tag="elsewhere"):
    """Ask the node at ``leader``, or find it if that is empty. It may have been recorded nevertheless."""

    number: int
    leader: str
    why: str


Answer = LeaderHint | Elsewhere | Reply | Failed

encode: Callable[[object], bytes] = msgspec.msgpack.Encoder().encode
decode_answer: Callable[[bytes], Answer] = msgspec.msgpack.Decoder(Answer).decode
decode_answers: Callable[[bytes], list[Answer]] = msgspec.msgpack.Decoder(list[Answer]).decode
decode_unread: Callable[[bytes], Request[msgspec.Raw]] = msgspec.msgpack.Decoder(Request[msgspec.Raw]).decode
decode_all_unread: Callable[[bytes], list[Request[msgspec.Raw]]] = msgspec.msgpack.Decoder(
    list[Request[msgspec.Raw]]
).decode


def requests_of(call: Any, *, many: bool = False) -> Any:
    """The type of a request with a call of type ``call``, or of a list of them, for a decoder."""
    one = Request[call]
    return list[one] if many else one


def judged(call: msgspec.Struct, decode: Callable[[bytes], msgspec.Struct]) -> msgspec.Raw:
    """``call`` as it goes over the wire. Raises ``UsageError`` if ``decode``, which is the peer's, would not
    take it: an id that is not a ``TxId``, a number that no peer can hold, text that is no Unicode.

    A call is judged when it is asked, before it is queued. A message that the peer cannot read would cut the
    connection that all callers of this process share, and be sent again on the next one."""
    try:
        payload = encode(call)
        decode(payload)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{type(call).__name__} was given what no ledger takes: {error}") from error
    if len(payload) > CALL_BYTES_MAX:
        raise UsageError(f"{type(call).__name__} of {len(payload)} bytes; {CALL_BYTES_MAX} are the most")
    return msgspec.Raw(payload)


def size(payload: bytes) -> int:
    """How many messages a frame says that it holds, from its first bytes: each becomes many times as large
    when it is decoded. Raises ``ValueError`` for what is no frame of messages."""
    first = payload[0] if payload else 0
    if first & 0xF0 == 0x90:  # msgpack's array formats (specification, "array format family")
        return first & 0x0F
    if first in {0xDC, 0xDD}:
        return int.from_bytes(payload[1 : 3 if first == 0xDC else 5])
    raise ValueError("no list of messages")


_RAISED = (
    ClusterRefused,
    ClusterNotReady,
    Impostor,
    NotPermitted,
    VersionHeldBack,
    SessionLost,
    UsageError,
)


def failed(number: int, error: UndoubtError) -> Failed:
    """``error`` as a message."""
    txid = error.txid if isinstance(error, BranchListMismatch | OutcomeUnknown) else None
    recorded: Sequence[str] = error.recorded if isinstance(error, BranchListMismatch) else ()
    given: Sequence[str] = error.given if isinstance(error, BranchListMismatch) else ()
    message = error.why if isinstance(error, OutcomeUnknown) else str(error)
    return Failed(number, _kind(error), message, txid, tuple(recorded), tuple(given))


def _kind(error: UndoubtError) -> str:
    """The nearest class of ``error`` that :func:`raised` makes again."""
    names = [each.__name__ for each in type(error).__mro__]
    known = {BranchListMismatch.__name__, OutcomeUnknown.__name__, *(kind.__name__ for kind in _RAISED)}
    return next((name for name in names if name in known), names[0])


def raised(message: Failed) -> UndoubtError:
    """The error that :func:`failed` was made from."""
    if message.kind == BranchListMismatch.__name__ and message.txid is not None:
        return BranchListMismatch(message.txid, message.recorded, message.given)
    if message.kind == OutcomeUnknown.__name__ and message.txid is not None:
        return OutcomeUnknown(message.txid, message.message)
    for kind in _RAISED:
        if message.kind == kind.__name__:
            return kind(message.message)
    return LedgerUnavailable(message.message)


def unreadable(number: int, error: Exception) -> Failed:
    """The answer to a request whose call cannot be read: it concerns that request alone."""
    return failed(number, UsageError(f"the ledger cannot read what it was asked: {error}"))


def illegible(error: Exception) -> LedgerUnavailable:
    """What a caller is told whose answer cannot be read. It was carried out, or was not."""
    return LedgerUnavailable(f"the ledger's answer cannot be read: {error}")
