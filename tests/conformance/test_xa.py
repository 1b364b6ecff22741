"""The outside cases as a test, and proof that the runner can fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance.xa import Case, read, reason_to_skip, run_all, run_case

CASES = Path(__file__).resolve().parents[3] / "shared" / "conformance" / "xa_outcomes.csv"
PASSED_MIN = 37

pytestmark = pytest.mark.usefixtures("few_looks")


async def test_outside_cases() -> None:
    """Broken if the protocol's answers to mixed votes and outcomes leave X/Open's rules."""
    if not CASES.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"required in CI, and missing: {CASES}")
        pytest.skip(f"outside cases are not part of this checkout: {CASES}")
    report = await run_all(read(CASES))
    assert report.failed == {}
    assert len(report.passed) >= PASSED_MIN


ANSWERS = {"prepare": "prepared", "commit": "ok", "one_phase": "ok", "rollback": "ok"}


def case(outcome: str, calls: str, *participants: dict[str, str], ends_with: str = "commit") -> Case:
    merged = tuple(ANSWERS | participant for participant in participants)
    return Case("x", merged, ends_with, frozenset({outcome}), {1: frozenset({calls})})


WRONG = [
    case("aborted", "prepare>commit", {}, {}),
    case("committed", "prepare>rollback", {}, {"prepare": "abort"}),
    case("committed", "commit", {}, {}),
    case("committed", "prepare>commit", {}),
    case("aborted", "prepare>rollback", {}, {}, ends_with="rollback"),
    case("heuristic_mixed", "prepare>commit", {}, {"commit": "heuristic_hazard"}),
    case("heuristic_hazard", "prepare>commit", {"commit": "heuristic_hazard"}, {}),
]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
async def test_the_runner_rejects_wrong_expectations(wrong: Case) -> None:
    """Broken if the runner passes, or skips, whatever it is given."""
    assert reason_to_skip(wrong) is None
    assert await run_case(wrong) is not None
