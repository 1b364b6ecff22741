"""Each example of a framework does what its page says."""

from __future__ import annotations

import pytest

from tests.docs.pages import ROOT
from tests.prove.frameworks import EXAMPLES, TOLD, outcome


@pytest.mark.parametrize("framework", TOLD)
async def test_an_example_tells_what_is_committed(framework: str, databases: dict[str, str]) -> None:
    assert await outcome(framework, databases) == "ok"


def test_every_example_of_a_framework_is_run_and_listed() -> None:
    listed = (ROOT / "examples/frameworks/README.md").read_text()
    programs = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert programs == sorted({name for name, _ in TOLD.values()})
    assert [name for name in programs if f"]({name})" not in listed] == []
