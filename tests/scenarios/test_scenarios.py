"""The scenario files over scripted participants."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.story import played, read, written
from tests.scenarios.three_phase import ThreePhase
from undoubt.participants.scripted import ScriptedParticipant

FILES = sorted(Path(__file__).parent.glob("three_phase_*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_three_phase(path: Path, request: pytest.FixtureRequest) -> None:
    """Broken if a story ends otherwise than it was reviewed to."""
    names = ("orders", "payments", "stock")
    story = ThreePhase({name: ScriptedParticipant(name) for name in names})
    told = written(await played(read(path), story.play))
    if request.config.getoption("--rewrite"):
        path.write_text(told, "utf-8")
    assert told == path.read_text("utf-8")


def test_there_are_stories() -> None:
    """Broken if the files are not found, and so nothing is tested."""
    assert len(FILES) >= 2
