"""Samples of everything that a type of msgspec can hold, encoded.

For each type: a first sample, and one more for each other alternative of a union and each other value of an
enumeration, wherever it occurs. What stands in a field is made of the field's name, so that fields that
change places change the bytes. It needs msgspec alone: the proof of upgrades runs it on the last release too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

import msgspec
from msgspec import inspect

Path = tuple[str, ...]
HEX = "0123456789abcdef"
PROTOCOLS = ["2", "3", "p"]
"""What every release writes where the last one took any text."""


def samples(root: Any) -> list[bytes]:
    """Those of ``root``, as msgpack; each once."""
    kind = inspect.type_info(root)
    found: dict[bytes, None] = {}
    waiting: list[dict[Path, int]] = [{}]
    known: set[Path] = set()
    while waiting:
        sampler = _Sampler(waiting.pop(0))
        found[msgspec.msgpack.encode(sampler.of(kind, ("root",)))] = None
        for path, count in sampler.choices.items():
            if path not in known:
                known.add(path)
                waiting += [{**sampler.chosen, path: number} for number in range(1, count)]
    return list(found)


class _Sampler:
    """``chosen``: which alternative is taken where; the first elsewhere. ``choices``: how many there were."""

    def __init__(self, chosen: Mapping[Path, int]) -> None:
        self.chosen = chosen
        self.choices: dict[Path, int] = {}

    def _choose(self, path: Path, of: list[Any]) -> Any:
        if len(of) > 1:
            self.choices[path] = len(of)
        return of[self.chosen.get(path, 0)]

    def of(self, kind: inspect.Type, path: Path) -> Any:
        name = path[-1]
        number = crc32(name.encode()) % 100 + 1
        match kind:
            case inspect.Metadata():
                return self.of(kind.type, path)
            case inspect.UnionType():
                some = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
                place = self._choose((*path, "|"), list(range(len(some))))
                return self.of(some[place], (*path, str(place), name) if len(some) > 1 else path)
            case inspect.StructType() | inspect.DataclassType() | inspect.NamedTupleType():
                given = {field.name: self._field(field, path) for field in kind.fields}
                return kind.cls(**given)
            case inspect.EnumType():
                return self._choose(path, list(kind.cls))
            case inspect.LiteralType():
                return self._choose(path, list(kind.values))
            case inspect.DictType():
                return {self.of(kind.key_type, (*path, "key")): self.of(kind.value_type, (*path, name))}
            case inspect.ListType() | inspect.SetType() | inspect.FrozenSetType() | inspect.VarTupleType():
                return (self.of(kind.item_type, path),)
            case inspect.CollectionType():
                return (self.of(kind.item_type, path),)
            case inspect.TupleType():
                return tuple(self.of(one, (*path, str(at))) for at, one in enumerate(kind.item_types))
            case inspect.IntType():
                return min(number, kind.le if kind.le is not None else number)
            case inspect.FloatType():
                return number + 0.5
            case inspect.StrType() if name == "protocol":
                return self._choose(path, PROTOCOLS)
            case inspect.StrType():
                return _text(kind.pattern, name)
            case inspect.BytesType():
                return name.encode()
            case inspect.BoolType():
                return True
            case inspect.NoneType():
                return None
            case inspect.AnyType() | inspect.RawType():
                return f"any {name}"
            case _:
                raise TypeError(f"{'.'.join(path)}: no sample of {kind}")

    def _field(self, field: inspect.Field, path: Path) -> Any:
        made = self.of(field.type, (*path, field.name))
        return not made if isinstance(made, bool) and made == field.default else made


def _text(pattern: str | None, name: str) -> str:
    """Made of ``name``; as ``pattern`` wants it, where that is a number of hexadecimal digits."""
    if pattern is None or re.search(pattern, name):
        return name
    length = re.search(r"\{(\d+)\}", pattern)
    text = (HEX[crc32(name.encode()) % 16] * int(length[1])) if length else ""
    if not re.search(pattern, text):
        raise TypeError(f"{name}: no sample of {pattern}")
    return text


def plain(data: bytes) -> Any:
    """What msgpack alone says of it."""
    return msgspec.msgpack.decode(data, strict=False)


def extends(new: Any, old: Any) -> bool:
    """Whether ``new`` has all of ``old``, and more only at the end of arrays and in maps."""
    match old:
        case list():
            return (
                isinstance(new, list)
                and len(new) >= len(old)
                and all(extends(*pair) for pair in zip(new, old, strict=False))
            )
        case dict():
            return isinstance(new, dict) and all(
                key in new and extends(new[key], one) for key, one in old.items()
            )
        case _:
            return type(new) is type(old) and bool(new == old)


def lines(roots: Mapping[str, Any]) -> Iterator[str]:
    """For a file: each root's name in brackets, and its samples as literals of Python."""
    for name, root in roots.items():
        yield f"[{name}]"
        yield from (repr(plain(data)) for data in samples(root))
