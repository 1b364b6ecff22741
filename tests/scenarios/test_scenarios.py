"""The scenario files: three-phase and two-phase commit over scripted participants, Raft over a network in
memory.

Each story of Raft and of two-phase commit names a planted bug that changes its trace: ``Control: NAME`` in
the file, and the story's test in ``tests/mutants/NAME.patch``. ``make mutants`` plants the bugs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.coordinator.raft.scenario import RaftScenario
from tests.house.tree import ROOT
from tests.scenarios.story import played, read, written
from tests.scenarios.three_phase import ThreePhase
from tests.scenarios.two_phase import TwoPhase
from undoubt.participants.scripted import ScriptedParticipant

HERE = Path(__file__).parent
MUTANTS = ROOT / "tests/mutants"
NAMES = ("orders", "payments", "stock")


def _three_phase() -> ThreePhase:
    return ThreePhase({name: ScriptedParticipant(name) for name in NAMES})


PLAYERS: dict[str, Callable[[], RaftScenario | TwoPhase | ThreePhase]] = {
    "raft": RaftScenario,
    "two_phase": TwoPhase,
    "three_phase": _three_phase,
}
"""By the beginning of a file's name."""
FILES = {kind: sorted(HERE.glob(f"{kind}_*.txt")) for kind in PLAYERS}
CONTROLLED = FILES["raft"] + FILES["two_phase"]


@pytest.mark.parametrize(
    "path", [path for paths in FILES.values() for path in paths], ids=lambda path: path.stem
)
async def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    """Broken if a story ends otherwise than it was reviewed to."""
    (player,) = (begin() for kind, begin in PLAYERS.items() if path in FILES[kind])
    try:
        told = written(await played(read(path), player.play))
    finally:
        if isinstance(player, TwoPhase):
            await player.close()
    if request.config.getoption("--rewrite"):
        path.write_text(told, "utf-8")
    assert told == path.read_text("utf-8")


@pytest.mark.parametrize("path", CONTROLLED, ids=lambda path: path.stem)
def test_every_story_says_what_must_hold_and_has_a_control(path: Path) -> None:
    """Broken if nobody knows what a story is for, or whether it could find anything."""
    text = path.read_text("utf-8")
    assert re.search(r"^# Must hold: \S", text, re.MULTILINE)
    controls = re.findall(r"^# Control: (\S+)$", text, re.MULTILINE)
    assert controls
    for name in controls:
        planted = (MUTANTS / f"{name}.patch").read_text("utf-8")
        assert f"\ntest: tests/scenarios/test_scenarios.py::test_scenario[{path.stem}]\n" in planted


@pytest.mark.parametrize(("kind", "least"), [("raft", 10), ("two_phase", 10), ("three_phase", 3)])
def test_there_are_stories(kind: str, least: int) -> None:
    """Broken if the files are not found, and so nothing is tested."""
    assert len(FILES[kind]) >= least
