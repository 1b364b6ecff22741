"""What is stored and sent keeps its form."""

from __future__ import annotations

import msgspec
import pytest

from tests.coordinator import formats
from tests.coordinator.format_samples import extends, samples


def test_formats_are_those_of_the_file() -> None:
    """Broken if a field, a tag or a value of anything that is stored or sent has another name, number or
    place than it had: disks and processes of the last release do not know it. What is new is added to the
    file: :mod:`tests.coordinator.formats`."""
    assert formats.differences() == []


@pytest.mark.parametrize("name", list(formats.ROOTS))
def test_what_is_encoded_can_be_read(name: str) -> None:
    """Broken if a decoder refuses, or changes, what is encoded of its own type."""
    for sample in samples(formats.ROOTS[name]):
        assert msgspec.msgpack.encode(msgspec.msgpack.decode(sample, type=formats.ROOTS[name])) == sample


class First(msgspec.Struct, array_like=True, tag="first"):
    one: int
    other: int


class Swapped(msgspec.Struct, array_like=True, tag="first"):
    other: int
    one: int


class Longer(First, array_like=True, tag="first"):
    more: str = ""


class Second(msgspec.Struct, array_like=True, tag="second"):
    name: str


def test_samples_show_what_changes() -> None:
    """Broken if fields could change places, or be renamed, and no sample would differ."""
    (first,), (swapped,), (longer,) = samples(First), samples(Swapped), samples(Longer)
    assert first != swapped
    made = [samples(msgspec.defstruct("Named", [(name, str)])) for name in ("name", "named")]
    assert made[0] != made[1]
    assert extends(msgspec.msgpack.decode(longer), msgspec.msgpack.decode(first))
    assert not extends(msgspec.msgpack.decode(swapped), msgspec.msgpack.decode(first))
    assert len(samples(First | Second | None)) == 2
