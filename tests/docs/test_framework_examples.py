"""Each example of a framework does what its page says."""

from __future__ import annotations

import pytest

from tests.docs.pages import ROOT
from tests.prove.frameworks import EXAMPLES, TOLD, outcome

PROGRAMS = [(framework, program) for framework, programs in TOLD.items() for program in programs]


@pytest.mark.parametrize(("framework", "program"), PROGRAMS)
async def test_an_example_tells_what_is_committed(
    framework: str, program: str, databases: dict[str, str]
) -> None:
    """Broken if a program that people copy tells a client what is not so."""
    assert await outcome(framework, program, databases) == "ok"


def test_every_example_of_a_framework_is_run_and_listed() -> None:
    listed = (ROOT / "examples/frameworks/README.md").read_text()
    programs = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert programs == sorted(program for _, program in PROGRAMS)
    assert [name for name in programs if f"]({name})" not in listed] == []
