"""The docstring of a package names each of its modules, and each reference to a module names a module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.reading import unmapped_modules
from tests.house.tree import ROOMS, ROOT, dotted, files, modules

REFERENCE = re.compile(r":mod:`~?([\w.]+)`")


def test_every_package_names_its_modules() -> None:
    assert unmapped_modules() == []


@pytest.mark.parametrize("folder", ["tests", "tests/house", "tests/prove"])
def test_the_maps_of_the_tests_name_what_is_no_test_itself(folder: str) -> None:
    root = ROOT / folder
    inside = {path.relative_to(root).parts[0] for path in files() if path.is_relative_to(root)}
    known = {name.removesuffix(".py") for name in inside if not name.startswith(("test_", "_"))}
    text = ast.get_docstring(ast.parse((root / "__init__.py").read_text())) or ""
    assert {name.removeprefix(".") for name in REFERENCE.findall(text)} == known


def test_every_reference_to_a_module_of_ours_leads_to_one() -> None:
    """Broken if a docstring names a module that was renamed or removed."""
    known = {dotted(path) for path in modules(*ROOMS, "tests")}
    broken = {
        (dotted(path), name)
        for path in modules(*ROOMS, "tests")
        for name, full in _references(path)
        if full.startswith(("undoubt.", "tests.")) and full not in known
    }
    assert sorted(broken) == []


def _references(path: Path) -> Iterator[tuple[str, str]]:
    """The references to modules in a docstring: as written, and with the full name."""
    own = dotted(path)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            for name in REFERENCE.findall(str(node.value.value)):
                yield name, package + name if name.startswith(".") else name
