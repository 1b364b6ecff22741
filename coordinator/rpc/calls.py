"""What a call is, declared once.

Its fields are the arguments, its type parameter is what the reply decodes to, its class attributes say since
which version it is known, and what the caller has to be allowed to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, TypeVar, Union, get_args

import msgspec

from undoubt.coordinator.errors import NotPermitted
from undoubt.coordinator.wire.rights import Right

R_co = TypeVar("R_co", covariant=True)


class Call(msgspec.Struct, Generic[R_co], frozen=True, array_like=True, tag=True, gc=False):
    """Base of all calls. It travels as an array whose first element is the tag."""

    right: ClassVar[Right] = Right.OBSERVE
    """What a client's certificate has to give."""
    version: ClassVar[int] = 1

    def since(self) -> int:
        """The version that the one who is asked has to speak, for this call as it is filled in."""
        return self.version


AnyCall = Call[Any]


def check_right(call: AnyCall, right: Right, holder: str) -> None:
    """Raises ``NotPermitted`` unless ``right``, which the certificate of ``holder`` gives, is enough for
    ``call``."""
    if right < call.right:
        raise NotPermitted(
            f"{type(call).__name__} needs a certificate with the role {call.right}; that of {holder}"
            f" has {right}"
        )


def kinds(of: type[AnyCall]) -> Iterator[type[AnyCall]]:
    """The calls that are declared beneath ``of``."""
    for kind in of.__subclasses__():
        if kind.__subclasses__():
            yield from kinds(kind)
        else:
            yield kind


def reply_type(kind: type[AnyCall]) -> Any:
    """What the reply to a call of that kind decodes to."""
    (base,) = kind.__orig_bases__  # type: ignore[attr-defined]
    return get_args(base)[0]


def any_of(*bases: type[AnyCall]) -> Any:
    """The type of all calls beneath those, for a decoder."""
    return Union[tuple(kind for base in bases for kind in kinds(base))]  # noqa: UP007 - of any number


def reply_decoders(*bases: type[AnyCall]) -> dict[type[AnyCall], Callable[[msgspec.Raw], Any]]:
    """For each kind of call beneath those: how its reply is decoded."""
    return {kind: msgspec.msgpack.Decoder(reply_type(kind)).decode for base in bases for kind in kinds(base)}
