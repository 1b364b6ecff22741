"""Limits how often the tests use private attributes of the product."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.house.tree import modules

ACCESSES_MAX = 117
SLACK = 15
"""By how much the number may fall before the limit has to be lowered."""
DOCUMENTED = {"_replace", "_asdict", "_fields", "_exit", "_getframe"}
"""Documented names of the standard library that begin with an underscore."""


def private_accesses(path: Path) -> list[str]:
    """``file:line: _name`` of each attribute with a leading underscore that is not of ``self`` or ``cls``."""
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
    """Broken if the tests use more private attributes: such tests have to be rewritten with the module. Give
    the attribute a public name instead."""
    found = [access for path in modules("tests") for access in private_accesses(path)]
    assert len(found) <= ACCESSES_MAX, "\n".join(found)
    assert len(found) >= ACCESSES_MAX - SLACK, f"ACCESSES_MAX can be {len(found)}"


def test_an_access_is_seen(tmp_path: Path) -> None:
    """Broken if the count misses a private attribute."""
    planted = tmp_path / "planted.py"
    planted.write_text("self._a\ncls._b\nother._c\nother.__d__\nself.x._e\nother.f\n")
    assert private_accesses(planted) == ["planted.py:3: _c", "planted.py:5: _e"]
