"""Reading, playing and rewriting of scenario files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

MARK = "----"

Play = Callable[[str, list[str]], Awaitable[list[str]]]
"""Carries out one command with its words; the lines of its trace."""


@dataclass(slots=True)
class Block:
    """``before`` are comments and blank lines in front of the command."""

    before: list[str]
    command: str
    expected: list[str] = field(default_factory=list)


def read(path: Path) -> list[Block]:
    blocks: list[Block] = []
    lines = path.read_text("utf-8").splitlines()
    at, before = 0, list[str]()
    while at < len(lines):
        line = lines[at]
        at += 1
        if not line or line.startswith("#"):
            before.append(line)
            continue
        block = Block(before, line)
        before = []
        if at >= len(lines) or lines[at] != MARK:
            raise ValueError(f"{path.name}:{at}: {MARK} must follow the command {line!r}")
        at += 1
        while at < len(lines) and lines[at]:
            block.expected.append(lines[at])
            at += 1
        blocks.append(block)
    return blocks


async def played(blocks: list[Block], play: Play) -> list[Block]:
    """The same blocks with the traces that they leave now."""
    told = []
    for block in blocks:
        name, *words = block.command.split()
        told.append(Block(block.before, block.command, await play(name, words)))
    return told


def written(blocks: list[Block]) -> str:
    lines: list[str] = []
    for block in blocks:
        lines += [*block.before, block.command, MARK, *block.expected]
    return "\n".join(lines) + "\n"
