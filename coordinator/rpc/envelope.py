"""The messages between a caller and the process that it calls, as msgpack arrays.

A caller numbers its requests; the answers have the same numbers and may come in any order. An error is sent
as :class:`Failed`, and the caller raises it again with the same class. Between the nodes of a cluster and
their clients a frame is a list of requests or of answers; between the owner of a SQLite ledger and its
clients a frame is one request or one answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from undoubt.coordinator.errors import (
    BranchListMismatch,
    ClusterNotReady,
    ClusterRefused,
    Impostor,
    LedgerMoved,
    LedgerUnavailable,
    MoveRefused,
    NotPermitted,
    OutcomeUnknown,
    SessionLost,
    UnknownNode,
    VersionHeldBack,
)
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.participants.ids import TxId

REQUESTS_PER_FRAME_MAX = 1_000

C = TypeVar("C")


class Request(msgspec.Struct, Generic[C], frozen=True, array_like=True, gc=False):
    """One numbered call. The answer has the same ``number``. ``call`` is of a type that the server defines,
    or ``msgspec.Raw`` if it is encoded already or not decoded yet."""

    number: int
    call: C


class Reply(msgspec.Struct, frozen=True, array_like=True, tag="ok", gc=False):
    number: int
    result: msgspec.Raw


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The error that a call raised. ``kind`` is the name of its class."""

    number: int
    kind: str
    message: str
    txid: TxId | None = None
    recorded: tuple[str, ...] = ()
    given: tuple[str, ...] = ()


class LeaderHint(msgspec.Struct, frozen=True, array_like=True, tag="standing"):
    """The first message of a cluster's node on each connection, sent before any request is read. ``leader``
    is an address, empty if the node knows no leader. ``ledger_id`` is empty on a node that does not know it
    yet."""

    ledger_id: str
    leads: bool
    leader: str


class Elsewhere(msgspec.Struct, frozen=True, array_like=True, tag="elsewhere"):
    """The caller has to ask the node at ``leader``, or to find the leader if ``leader`` is empty. The command
    may nevertheless have been recorded."""

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


_RAISED = (
    ClusterRefused,
    ClusterNotReady,
    UnknownNode,
    Impostor,
    LedgerMoved,
    MoveRefused,
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
    """The name of the nearest class of ``error`` that :func:`raised` can make."""
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
    """The answer to a request whose call cannot be decoded. Other requests of the frame are not affected."""
    return failed(number, UsageError(f"the ledger cannot decode the call: {error}"))


def illegible(error: Exception) -> LedgerUnavailable:
    """The error of a caller whose answer cannot be decoded. Whether the call was carried out is unknown."""
    return LedgerUnavailable(f"the ledger's answer cannot be decoded: {error}")
