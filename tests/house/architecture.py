"""What ARCHITECTURE.md says that can be compared with the code."""

from __future__ import annotations

import re

from tests.house.tree import ROOT

PATH = "In the client and in the leader"
DISKS = "In the followers and on the disks"


def section(heading: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found is not None, f"ARCHITECTURE.md has no heading {heading!r}"
    level = len(found[1])
    return re.split(rf"^#{{1,{level}}} ", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def files_named(heading: str) -> set[str]:
    """Files of the product under that heading."""
    return set(re.findall(r"`([\w/]+\.py)`", section(heading)))
