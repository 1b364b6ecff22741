"""What ``docs/protocols.md`` and its background say of costs and states is what the code has."""

from __future__ import annotations

import re

import pytest

from tests.coordinator.costs import Cost, cost
from tests.docs.pages import ROOT
from undoubt.coordinator import session
from undoubt.coordinator.protocols import context
from undoubt.participants.contract import Decision
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


def drawn_after(mark: str) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """The arrows of the diagram behind ``<!-- mark -->``, and the labels of its states."""
    diagram = BACKGROUND.split(f"<!-- {mark} -->")[1].split("```")[1]
    arrows = re.findall(r"^    (\S+) --> (\S+): (.+)$", diagram, re.MULTILINE)
    return arrows, dict(re.findall(r"^    (\w+): (.+)$", diagram, re.MULTILINE))


def test_the_states_of_a_commit_are_the_table() -> None:
    """Broken if what people are shown of a commit, and of what its caller hears, is not the code's."""
    arrows, labels = drawn_after("commit")
    assert arrows == [
        (before.name.lower(), after.name.lower(), event)
        for (before, event), after in context.TRANSITIONS.items()
    ]
    names = {state.name.lower(): str(state) for state in context.CommitState}
    assert labels == {name: label for name, label in names.items() if name != label}
    outcomes = {None: "not known yet", Decision.ABORT: "aborted", Decision.COMMIT: "committed"}
    rows = BACKGROUND.split("<!-- outcomes -->\n")[1].split("\n\n")[0].splitlines()[2:]
    assert rows == [
        f"| {state} | {phase.name.lower()} | {outcomes[context.OUTCOMES[phase]]} |"
        for state in context.CommitState
        for phase in [context.PHASES[state]]
    ]


def test_the_states_of_a_coordinators_sessions_are_the_table() -> None:
    arrows, labels = drawn_after("sessions")
    assert arrows == [
        (before.name.lower(), after.name.lower(), event)
        for (before, event), after in session.TRANSITIONS.items()
    ]
    names = {state.name.lower(): str(state) for state in session.KeeperState}
    assert labels == {name: label for name, label in names.items() if name != label}


def column(name: str) -> dict[str, str]:
    """The rows of the comparison, of that protocol."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"
    ]
    at = next(index for index, cell in enumerate(rows[0]) if f"`{name}`" in cell)
    return {row[0]: row[at] for row in rows}


@pytest.mark.parametrize("protocol", ["2pc", "3pc", "paxos", "last"])
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
