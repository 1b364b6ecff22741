"""What ``docs/protocols.md`` and its background say of costs and states is what the code has."""

from __future__ import annotations

import re

import pytest

from tests.coordinator.costs import Cost, cost
from tests.docs.pages import ROOT
from undoubt.participants.three_phase import TRANSITIONS

PAGE = (ROOT / "docs" / "protocols.md").read_text("utf-8")
BACKGROUND = (ROOT / "docs" / "protocols-background.md").read_text("utf-8")


def test_the_diagram_is_the_table() -> None:
    """Broken if the states in the code and those that people are shown differ."""
    diagram = BACKGROUND.split("<!-- states -->")[1].split("```")[1]
    drawn = re.findall(r"^    (\S+) --> (\S+): (.+)$", diagram, re.MULTILINE)
    assert drawn == [
        (before or "[*]", after, f"{event} (quorum)" if quorum_only else f"{event}")
        for before, event, after, quorum_only in TRANSITIONS
    ]


def column(name: str) -> dict[str, str]:
    """The rows of the comparison, of that protocol."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"
    ]
    at = next(index for index, cell in enumerate(rows[0]) if f"`{name}`" in cell)
    return {row[0]: row[at] for row in rows}


@pytest.mark.parametrize("protocol", ["2pc", "3pc", "paxos"])
@pytest.mark.parametrize(("word", "participants"), [("two", 2), ("three", 3)])
async def test_costs_are_counted(protocol: str, word: str, participants: int) -> None:
    """Broken if a protocol costs more, or less, than people are told."""
    told = column(protocol)
    assert await cost(protocol, participants) == Cost(
        int(told[f"messages, {word} databases"]),
        int(told[f"durable writes that it waits for, {word} databases"]),
    )


async def test_with_one_acceptor_paxos_commit_costs_what_two_phase_commit_does() -> None:
    """Broken if F = 0 were anything else than two-phase commit (Gray and Lamport, §5)."""
    for participants in (2, 3):
        assert await cost("paxos", participants, acceptors=1) == await cost("2pc", participants)
