"""The results of transactions with a key, as the ledger stores them.

A result is ``bytes``, or JSON: None, a bool, an integer of at most 64 bits, a finite float, text, a list, or
a dict with text as keys. Nothing else is accepted, so that a repetition returns a value that is equal to the
first one. An encoded result begins with one byte, ``b`` or ``j``; an empty one is None."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from undoubt.coordinator.ledger.keys import RESULT_BYTES_MAX
from undoubt.participants.bounds import OutOfBounds

DEPTH_MAX = 32
INTEGERS = range(-(2**63), 2**63)

_ACCEPTED = "bytes, or JSON of None, bool, int (64 bits), float, str, list, and dict with str keys"


def encode_result(result: object) -> bytes:
    """``result`` as the ledger stores it. Raises ``OutOfBounds`` for a value that cannot be stored."""
    if result is None:
        return b""
    if isinstance(result, bytes):
        encoded = b"b" + result
    else:
        check_json("result", result)
        try:
            encoded = b"j" + msgspec.json.encode(result)
        except ValueError as error:  # text that is not valid Unicode
            raise OutOfBounds("result", f"cannot be stored: {error}") from error
    if len(encoded) > RESULT_BYTES_MAX:
        raise OutOfBounds(
            "result", f"has {len(encoded) - 1} bytes; a stored result has {RESULT_BYTES_MAX - 1} at most"
        )
    return encoded


def decode_result(encoded: bytes) -> Any:
    """The inverse of :func:`encode_result`. Raises ``ValueError`` for what that did not make."""
    if not encoded:
        return None
    kind, rest = encoded[:1], encoded[1:]
    if kind == b"b":
        return rest
    if kind != b"j":
        raise ValueError(f"a stored result of unknown kind {kind!r}")
    return msgspec.json.decode(rest)


def check_json(name: str, value: object, depth: int = 0) -> None:
    """Raise ``OutOfBounds`` unless ``value`` is JSON as above. ``name`` is the name of the argument."""
    if depth > DEPTH_MAX:
        raise OutOfBounds(name, f"is nested more than {DEPTH_MAX} deep")
    kind = type(value)
    if isinstance(value, list | dict) and kind in {list, dict}:
        for key in value if kind is dict else ():
            if type(key) is not str:
                raise OutOfBounds(name, f"has a key of type {type(key).__name__} ({_ACCEPTED})")
        for each in value.values() if isinstance(value, dict) else value:
            check_json(name, each, depth + 1)
    elif isinstance(value, int) and kind is int and value not in INTEGERS:
        raise OutOfBounds(name, "has an integer of more than 64 bits")
    elif isinstance(value, float) and kind is float and not math.isfinite(value):
        raise OutOfBounds(name, "has a float that is not finite, which JSON does not have")
    elif value is not None and kind not in {bool, int, float, str}:
        raise OutOfBounds(name, f"has a value of type {kind.__name__} ({_ACCEPTED})")
