"""Tests reach into what a module keeps for itself only where they must, and never more often than today."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.house.tree import modules

ACCESSES_MAX = 243
SLACK = 15
"""So many may go before the limit has to follow."""
DOCUMENTED = {"_replace", "_asdict", "_fields", "_exit", "_getframe"}
"""Of the standard library, where the underscore keeps them apart from the names of others."""


def private_accesses(path: Path) -> list[str]:
    """``file:line: _name`` of each attribute with a leading underscore that is not the code's own."""
    return [
        f"{path.name}:{node.lineno}: {node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in DOCUMENTED
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
    ]


def test_tests_use_what_is_public() -> None:
    """A test that is bound to a module's private attributes has to be rewritten with the module. Give what
    the test needs a public name there."""
    found = [access for path in modules("tests") for access in private_accesses(path)]
    assert len(found) <= ACCESSES_MAX, "\n".join(found)
    assert len(found) >= ACCESSES_MAX - SLACK, f"ACCESSES_MAX can be {len(found)}"


def test_an_access_is_seen(tmp_path: Path) -> None:
    """The count would hold for whatever it does not see."""
    planted = tmp_path / "planted.py"
    planted.write_text("self._a\ncls._b\nother._c\nother.__d__\nself.x._e\nother.f\n")
    assert private_accesses(planted) == ["planted.py:3: _c", "planted.py:5: _e"]
