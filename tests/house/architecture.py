"""Reads the sections of ARCHITECTURE.md that are compared with the code."""

from __future__ import annotations

import re

from tests.house.tree import ROOT

PATH = "In the client and in the leader"
DISKS = "In the followers and on the disks"


def section(heading: str) -> str:
    """The text under ``heading``, up to the next heading of the same or a higher level."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found is not None, f"ARCHITECTURE.md has no heading {heading!r}"
    level = len(found[1])
    return re.split(rf"^#{{1,{level}}} ", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def files_named(heading: str) -> set[str]:
    """The files of the product that the section ``heading`` names."""
    return set(re.findall(r"`([\w/]+\.py)`", section(heading)))
