"""Converts values of SQL to JSON and back, without loss.

Both directions use PostgreSQL's own text of a value (https://www.postgresql.org/docs/current/datatype.html),
which the server writes and reads again without change. JSON's own types stand for it only where JSON loses
nothing:

===========================  =====================================  ==========================================
type                         JSON                                   why
===========================  =====================================  ==========================================
NULL                         ``null``
``bool``                     ``true``, ``false``
``int2``, ``int4``, ``oid``  number
``int8``                     string                                 JavaScript's numbers end at 2**53
``float4``, ``float8``       number, or the strings ``"NaN"``,      shortest text that reads back as the same
                             ``"Infinity"``, ``"-Infinity"``
``numeric``                  string, ``"1.10"``                     digits that count
``json``, ``jsonb``          string, the document's text            NULL and the document ``null`` differ
``bytea``                    string, ``"\\\\x00ff"``
arrays                       list, of lists where it has several    with explicit lower bounds, of box, and of
                             dimensions                             types that only their database knows: the
                                                                    text
everything else              string                                 timestamps, uuid, ranges, enums …
===========================  =====================================  ==========================================

A parameter is any of these; the server takes its text for a value of the type that the statement needs there.
A number keeps the digits that it was written with. ``{"type": "numeric", "value": …}`` says the type; a
document for ``json`` and ``jsonb`` may then be written as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from psycopg.postgres import types as known_types

from undoubt.participants.bounds import OutOfBounds

UNKNOWN_OID = 0
"""The oid that lets the server infer the type of a parameter."""
DEPTH_MAX = 6
"""The maximum number of dimensions of an array (``MAXDIM`` in ``src/include/utils/array.h`` of
PostgreSQL)."""

_NUMBERS = frozenset({"int2", "int4", "oid"})
_FLOATS = frozenset({"float4", "float8"})
_DOCUMENTS = frozenset({"json", "jsonb"})
_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_NO_NUMBER = frozenset({"NaN", "Infinity", "-Infinity"})


class Parameter(NamedTuple):
    """A parameter as it is sent: the text of the value, None for NULL, and the oid of its type."""

    text: bytes | None
    oid: int = UNKNOWN_OID


class _Typed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    value: msgspec.Raw


# To the server.


def parameter(raw: bytes, where: str = "params") -> Parameter:
    """The parameter that the JSON text describes. Raises ``OutOfBounds``, which names ``where``."""
    head = raw[:1]
    if head != b"{":
        return Parameter(_text(raw, where))
    try:
        typed = msgspec.json.decode(raw, type=_Typed)
    except msgspec.MsgspecError as error:
        raise OutOfBounds(where, f'has an object that is not {{"type": …, "value": …}}: {error}') from None
    oid = _oid(typed.type, where)
    value = bytes(typed.value).strip()
    if typed.type in _DOCUMENTS and value != b"null":
        document = value if value[:1] != b'"' else _string(value, where).encode()
        return Parameter(document, oid)
    return Parameter(_text(value, where), oid)


def _text(raw: bytes, where: str) -> bytes | None:
    raw = raw.strip()
    match raw[:1]:
        case b"n":
            return None
        case b"t" | b"f":
            return raw
        case b'"':
            return _string(raw, where).encode()
        case b"[":
            return _array(raw, where, 1).encode()
        case b"{":
            raise OutOfBounds(where, "has an object inside of an array; give a document as a string")
        case _:
            if _NUMBER.fullmatch(raw) is None:
                raise OutOfBounds(where, "has something that is no JSON value")
            return raw


def _string(raw: bytes, where: str) -> str:
    value = msgspec.json.decode(raw, type=str)
    if "\0" in value:
        raise OutOfBounds(where, "has text with a NUL character, which PostgreSQL cannot store")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise OutOfBounds(where, "has text that is not valid Unicode") from None
    return value


def _array(raw: bytes, where: str, depth: int) -> str:
    """The array as text (PostgreSQL manual, "Array Input and Output Syntax")."""
    if depth > DEPTH_MAX:
        raise OutOfBounds(where, f"has an array of more than {DEPTH_MAX} dimensions")
    parts = []
    for each in msgspec.json.decode(raw, type=list[msgspec.Raw]):
        item = bytes(each).strip()
        if item[:1] == b"[":
            parts.append(_array(item, where, depth + 1))
        else:
            text = _text(item, where)
            parts.append("NULL" if text is None else _quoted(text.decode()))
    return "{" + ",".join(parts) + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _oid(name: str, where: str) -> int:
    element = name.removesuffix("[]")
    info = known_types.get(element)
    oid = None if info is None else (info.array_oid if name.endswith("[]") else info.oid)
    if not oid:
        raise OutOfBounds(
            where, f"names a type that is not known here: {name[:80]!r}; cast it in the statement instead"
        )
    return oid


# From the server.


def type_name(oid: int) -> str:
    """The name of a type as :func:`parameter` accepts it; ``oid 12345`` for a type that is defined in the
    database."""
    info = known_types.get(oid)
    if info is None:
        return f"oid {oid}"
    return f"{info.name}[]" if info.array_oid == oid and info.oid != oid else info.name


def value(text: bytes | None, type_: str) -> Any:
    """The JSON value for the text in UTF-8 that the server has sent for a column of this type."""
    if text is None:
        return None
    decoded = text.decode()
    if type_.endswith("[]"):
        # Only the text can hold bounds other than 1; the elements of arrays of boxes have another separator.
        if not decoded.startswith("{") or type_ == "box[]":
            return decoded
        return _elements(decoded, type_.removesuffix("[]"))
    return _scalar(decoded, type_)


def _scalar(text: str, type_: str) -> Any:
    if type_ == "bool":
        return text == "t"
    if type_ in _NUMBERS:
        return int(text)
    if type_ in _FLOATS and text not in _NO_NUMBER:
        return float(text)
    return text


def _elements(text: str, type_: str) -> list[Any]:
    """The nested lists that the text of an array describes. A quoted element is never NULL."""
    stack: list[list[Any]] = []
    for part, quoted in _parts(text):
        if quoted:
            stack[-1].append(_scalar(part, type_))
        elif part == "{":
            inner: list[Any] = []
            if stack:
                stack[-1].append(inner)
            stack.append(inner)
        elif part == "}":
            done = stack.pop()
            if not stack:
                return done
        elif part == "NULL":
            stack[-1].append(None)
        else:
            stack[-1].append(_scalar(part, type_))
    raise ValueError(f"not the text of an array: {text[:80]!r}")


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """The braces and elements of an array's text, each with whether it is quoted."""
    place = 0
    while place < len(text):
        letter = text[place]
        if letter in "{}":
            yield letter, False
            place += 1
        elif letter == '"':
            part, place = _unquoted(text, place + 1)
            yield part, True
        elif letter == ",":
            place += 1
        else:
            end = place
            while text[end] not in ",}":
                end += 1
            yield text[place:end], False
            place = end


def _unquoted(text: str, place: int) -> tuple[str, int]:
    parts = []
    while text[place] != '"':
        if text[place] == "\\":
            place += 1
        parts.append(text[place])
        place += 1
    return "".join(parts), place + 1
