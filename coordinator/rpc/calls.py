"""The base class of calls: each call is declared once.

The fields of a call are its arguments, its type parameter is the type that the reply decodes to, and its
class attributes say which protocol version introduced the call and which right the caller needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, TypeVar, Union, get_args

import msgspec

from undoubt.coordinator.errors import NotPermitted
from undoubt.coordinator.wire.rights import Right

R_co = TypeVar("R_co", covariant=True)


class Call(msgspec.Struct, Generic[R_co], frozen=True, array_like=True, tag=True, gc=False):
    """Base of all calls. A call is sent as an array whose first element is the tag."""

    right: ClassVar[Right] = Right.OBSERVE
    """The right that the caller's certificate has to give."""
    version: ClassVar[int] = 1

    def since(self) -> int:
        """The lowest protocol version in which the peer understands this call with these arguments."""
        return self.version


AnyCall = Call[Any]


def check_right(call: AnyCall, right: Right, holder: str) -> None:
    """Check that ``right``, which the certificate of ``holder`` gives, is enough for ``call``. Raises
    ``NotPermitted`` if it is not."""
    if right < call.right:
        raise NotPermitted(
            f"{type(call).__name__} needs a certificate with the role {call.right}; the certificate"
            f" of {holder} has {right}"
        )


def kinds(of: type[AnyCall]) -> Iterator[type[AnyCall]]:
    """The subclasses of ``of`` that have no subclasses: the calls that can be sent."""
    for kind in of.__subclasses__():
        if kind.__subclasses__():
            yield from kinds(kind)
        else:
            yield kind


def reply_type(kind: type[AnyCall]) -> Any:
    """The type that the reply to a call of class ``kind`` decodes to."""
    (base,) = kind.__orig_bases__  # type: ignore[attr-defined]
    return get_args(base)[0]


def any_of(*bases: type[AnyCall]) -> Any:
    """The union of all calls that derive from ``bases``, for a decoder."""
    return Union[tuple(kind for base in bases for kind in kinds(base))]  # noqa: UP007 - of any number


def reply_decoders(*bases: type[AnyCall]) -> dict[type[AnyCall], Callable[[msgspec.Raw], Any]]:
    """The decoder of the reply, by class of call, for all calls that derive from ``bases``."""
    return {kind: msgspec.msgpack.Decoder(reply_type(kind)).decode for base in bases for kind in kinds(base)}
