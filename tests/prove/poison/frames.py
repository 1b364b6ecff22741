"""Requests with one value changed: at its bounds, beyond them, or of another kind.

::

    for frame in poisoned(InfoCall()):      # msgpack of one call each
        ...

A call is taken as the lists and maps that msgpack carries, so no type of undoubt's has to hold a changed
value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from undoubt.coordinator.ledger import calls
from undoubt.coordinator.node.clients import REQUESTS_PER_CONNECTION_MAX
from undoubt.coordinator.rpc.envelope import (
    Request,
    encode,
)
from undoubt.coordinator.wire import VERSIONS
from undoubt.coordinator.wire.connection import HEADER, header
from undoubt.coordinator.wire.settings import FRAME_BYTES_MAX
from undoubt.participants.bounds import DURATION_S_MAX

INTEGERS = (
    *(-(2**63), -(2**31), -1, 0, 1, 2, 9_999, 10_000, 100_001),
    *(2**31 - 1, 2**31, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
)
FLOATS = (
    *(math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 5e-324, 0.0004, 0.001, 1e17, 1e300, -1e300),
    *(DURATION_S_MAX, math.nextafter(DURATION_S_MAX, math.inf), DURATION_S_MAX * 1000),
)
TEXTS = (
    *(
        "",
        "\0",
        " ",
        "2",
        "3",
        "p",
        "commit",
        "abort",
        "add",
        "remove",
        "promote",
        "\u202e\n\x1b[0m",
        "🦄" * 64,
    ),
    *("0" * 16, "f" * 16, "f" * 17, "0" * 20, "f" * 32, "a" * 63, "a" * 64, "a" * 1_000, "a" * 1_001),
    *("a" * 2_000, "a" * 2_001, "a" * 10_001, "a" * 1_000_000),
    msgspec.Raw(b"\xa2\xff\xfe"),  # no UTF-8
    msgspec.Raw(b"\xa3\xed\xa0\x80"),  # half of a surrogate pair
)
OTHERS: tuple[Any, ...] = (
    *(None, True, 7, -7, 1.5, "text", b"bytes", [], {}, [[]], [None], {"a": 1}, {"": {}}),
    msgspec.Raw(b"\xd6\xff\x00\x00\x00\x00"),  # msgpack's timestamp
    msgspec.Raw(b"\xc7\x01\x7f\x00"),  # an extension that nobody knows
)
DEPTH = 200

_encode = msgspec.msgpack.Encoder().encode
Path = tuple[int | str, ...]


def poisoned(call: msgspec.Struct, *, long: int) -> Iterator[bytes]:
    """``call`` with each value changed in turn. A list is once made ``long`` elements long."""
    plain = msgspec.msgpack.decode(_encode(call))
    yield _encode(plain)
    for path, value in _values(plain):
        for bad in (*_alike(value, long), *OTHERS):
            yield _encode(_replaced(plain, path, bad))
    if isinstance(plain, list):
        yield from map(_encode, _misshapen(plain))


def _values(plain: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All of them, those that hold others first; but for the tag of the call."""
    inside: Any = ()
    if isinstance(plain, list):
        inside = list(enumerate(plain))[0 if path else 1 :]
    elif isinstance(plain, dict):
        inside = list(plain.items())
    for key, value in inside:
        yield (*path, key), value
        yield from _values(value, (*path, key))


def _alike(value: Any, long: int) -> tuple[Any, ...]:
    match value:
        case bool():
            return (not value,)
        case int():
            return INTEGERS
        case float():
            return (*FLOATS, *INTEGERS)
        case str():
            return TEXTS
        case bytes():
            return (b"", b"\0", value[:-1], value + b"\0", b"\xff" * 1_000_000)
        case list():
            one = value[:1] or [0]
            return ([], one, one * 2, value + one, one * long, value[::-1], _deep())
        case None:
            return (0, "", [1, "f" * 16, 1], -1)
        case _:
            return ({}, [], {**value, "": 1}, dict(list(value.items())[:-1]))


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(DEPTH):
        deep = [deep]
    return deep


def _replaced(plain: Any, path: Path, bad: Any) -> Any:
    if not path:
        return bad
    key, rest = path[0], path[1:]
    copy: Any = dict(plain) if isinstance(plain, dict) else list(plain)
    copy[key] = _replaced(plain[key], rest, bad)
    return copy


def _misshapen(plain: list[Any]) -> Iterator[Any]:
    tag = plain[0]
    yield from (plain[:count] for count in range(len(plain)))
    yield from ([*plain, more] for more in (None, "more", [1] * 1000, {"a": 1}))
    yield from (
        [other, *plain[1:]] for other in (None, 0, "", f"{tag}?", [tag], {tag: tag}, "open", "acceptor")
    )
    yield from (tag, {"type": tag}, {tag: plain[1:]}, dict(enumerate(plain)), [plain], plain * 2)


def garbage() -> Iterator[Callable[[], bytes]]:
    """What is no frame of requests, as bytes behind the handshake, each for a connection of its own. Made
    when called: some are as large as a frame may be."""
    one = encode([Request(1, calls.InfoCall())])[1:]
    numbers: tuple[Any, ...] = (None, -1, 1.5, 2**64 - 1, "1", [], {}, b"1")
    for payload in (
        *(b"", b"\x90", b"\xc0", b"\xc1", b"\x80", b"\x01", b"text", b"\xff" * 100, one, b"\x92" + one),
        *(b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff" + one, b"\xdf\xff\xff\xff\xff"),
        b"\x91\x92\x01" + b"\x91" * 100_000 + b"\x90",
        *(_encode([[number, ["info"]]]) for number in numbers),
    ):
        yield lambda payload=payload: _sealed(payload)  # type: ignore[misc]
    many = REQUESTS_PER_CONNECTION_MAX + 1
    yield lambda: _sealed(b"\xdd" + many.to_bytes(4) + one * many)
    yield lambda: _sealed(b"\xdd" + (2**23).to_bytes(4) + one[:1] * (FRAME_BYTES_MAX - 2**20))
    for length, version in ((0, 3), (4, 3), (FRAME_BYTES_MAX + 1, 3), (2**32 - 1, 3), (100, 0), (100, 255)):
        yield lambda length=length, version=version: (  # type: ignore[misc]
            HEADER.pack(length, version, 0) + bytes(200)
        )
    yield lambda: _sealed(b"\x90")[:-1] + b"\x91"  # a checksum of something else


def _sealed(payload: bytes) -> bytes:
    return header(payload, VERSIONS.highest) + payload


def beside(number: int, raw: bytes, honest: Request[Any]) -> bytes:
    """A frame with the poisoned call as request ``number``, and a sound request behind it."""
    return b"\x92" + _encode([number, msgspec.Raw(raw)]) + _encode(honest)
