"""Changes of files, and what is heard when they are opened."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

FLIPS_MIN = 150
"""In a file that holds so many bytes."""
CUT_STEP = 8
"""A file is cut at every so many of its flips."""


@dataclass(frozen=True, slots=True)
class Change:
    """One, of the file ``name``. ``kind``: ``flip`` (bit ``at % 8`` of byte ``at``), ``cut`` (to ``at``
    bytes), ``zeros`` (from ``at`` on, as long as it was), ``missing``, or, of several files, ``crash``: as
    the case numbered ``at`` of what crashes leave."""

    kind: str
    name: str
    at: int = 0

    def apply(self, folder: Path) -> None:
        path = folder / self.name
        match self.kind:
            case "flip":
                with path.open("r+b") as file:
                    file.seek(self.at)
                    byte = file.read(1)[0]
                    file.seek(self.at)
                    file.write(bytes([byte ^ 1 << self.at % 8]))
            case "cut":
                with path.open("r+b") as file:
                    file.truncate(self.at)
            case "zeros":
                size = path.stat().st_size
                with path.open("r+b") as file:
                    file.truncate(self.at)
                    file.truncate(size)
            case "missing":
                path.unlink()
            case other:
                raise ValueError(other)


@dataclass(frozen=True, slots=True)
class Heard:
    """``alarm``: what people are told about the store; empty if it opened as if nothing had happened.
    ``lost``: what was acknowledged and is not there; empty also if it did not open."""

    alarm: str
    lost: str


class Files(Protocol):
    """The files of one store."""

    folder: Path
    """As a process that was killed has left them."""

    async def make(self) -> None: ...

    def kind_of(self, name: str) -> str:
        """What kind of file that is."""
        ...

    def crashes(self) -> int:
        """How many cases there are of what crashes leave."""
        ...

    def acknowledged(self, change: Change) -> bool:
        """Whether it meets something that was acknowledged, or that tells whether all of it is there."""
        ...

    async def open(self, change: Change) -> Heard:
        """Of a copy with that change."""
        ...


def changes(files: Files, step: int) -> Iterator[Change]:
    """Of every file in turn; ``step``: between the bytes of which a bit is flipped."""
    for path in sorted(files.folder.iterdir()):
        if path.is_dir() or path.is_socket():
            continue
        size = path.stat().st_size
        yield Change("missing", path.name)
        far = min(step, max(1, size // FLIPS_MIN))
        if not files.acknowledged(Change("missing", path.name)):
            far = max(far, size // FLIPS_MIN)  # zeros that are set aside
        for number, at in enumerate(range(0, size, far)):
            yield Change("flip", path.name, at)
            if number % CUT_STEP == 0:
                yield Change("cut", path.name, at)
                yield Change("zeros", path.name, at)
    for number in range(files.crashes()):
        yield Change("crash", "", number)


def copied(source: Path, target: Path) -> Path:
    """A fresh copy."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700)
    for path in source.iterdir():
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    return target
