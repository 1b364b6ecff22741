"""Blocks of code in the project's pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def programs() -> list[tuple[Block, str | None]]:
    """Each Python program with what its page says that it prints, None where it says nothing."""
    every = blocks("")
    return [
        (block, after.text if after is not None and after.language == "text" else None)
        for block, after in zip(every, [*every[1:], None], strict=True)
        if block.language == "python"
    ]


def blocks(language: str, *pages: Path) -> list[Block]:
    """Those of that language, of every one if it is empty, in their order."""
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for page in pages or PAGES
        for text in [page.read_text()]
        for match in _BLOCK.finditer(text)
        if language in {"", match[1]}
    ]
