"""The page of ``undoubt indoubt explain``: decision, votes, what it blocks, the safe action, the proof."""

from __future__ import annotations

import textwrap
from typing import Any

from undoubt.cli.output import Output
from undoubt.report.sections import sections

WIDTH = 96


def explain_page(out: Output, document: dict[str, Any]) -> None:
    """Print ``document`` as a page."""
    out.heading(document["branch"]["gid"])
    for number, section in enumerate(sections(document)):
        if number:
            out.line()
            out.heading(section["title"])
        for line in section["lines"]:
            _paragraph(out, line)
        if section["command"]:
            out.line(f"  {section['command']}")


def _paragraph(out: Output, text: str) -> None:
    # A gid is never broken: it must survive being copied.
    for line in textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False):
        out.line(f"  {line}")
