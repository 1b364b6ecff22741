"""Reads the page: its sections, their blocks of commands, and what each block prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs/runbook.md"
ADMIN = "admin"
"""Where a block without ``# on MACHINE`` is run."""
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_WHERE = re.compile(r"^# on (\S+)$")
_STATUS = re.compile(r"\s+# exit status (\d+)$")


@dataclass(frozen=True)
class Command:
    """``status``: what the page says that it exits with."""

    text: str
    status: int = 0


@dataclass(frozen=True)
class Block:
    """``printed``: what all commands together print, None where the page does not say it."""

    line: int
    where: str
    commands: tuple[Command, ...]
    printed: str | None


def sections(page: Path = PAGE) -> dict[str, list[Block]]:
    """By heading, in their order; a section without commands has an empty list."""
    text = page.read_text()
    starts = [(text.count("\n", 0, found.start()) + 1, found[1]) for found in _HEADING.finditer(text)]
    read: dict[str, list[Block]] = {heading: [] for _, heading in starts}
    every = blocks("", page)
    for block, after in zip(every, [*every[1:], None], strict=True):
        if block.language != "bash":
            continue
        heading = [each for line, each in starts if line < block.line][-1]
        printed = after.text if after is not None and after.language == "text" else None
        read[heading].append(Block(block.line, _where(block.text), tuple(_commands(block.text)), printed))
    return read


def _where(text: str) -> str:
    found = _WHERE.match(text.partition("\n")[0])
    return ADMIN if found is None else found[1]


def _commands(text: str) -> Iterator[Command]:
    for line in text.replace("\\\n", " ").splitlines():
        if not line or line.startswith("#"):
            continue
        found = _STATUS.search(line)
        yield Command(line) if found is None else Command(line[: found.start()], int(found[1]))


def differs(printed: str, said: str) -> str | None:
    """Where ``said`` is not what a page says: ``...`` stands for some characters, and alone in a line for any
    number of lines. How wide the columns of a table are does not count. None if it does not differ."""
    left, wanted = _lines(said), _lines(printed)
    for number, line in enumerate(wanted):
        if line == "...":
            rest = wanted[number + 1 :]
            ways = range(len(left) + 1)
            if any(differs("\n".join(rest), "\n".join(left[skipped:])) is None for skipped in ways):
                return None
            return f"after '...' nothing is like {rest!r} in {left!r}"
        if not left:
            return f"{line!r} is not printed"
        pattern = ".*".join(re.escape(part) for part in line.split("..."))
        if re.fullmatch(pattern, left[0]) is None:
            return f"{left[0]!r} is printed, not {line!r}"
        left = left[1:]
    return f"{left!r} is printed too" if left else None


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]
