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


PACKAGES = [path for path in modules("tests") if path.name == "__init__.py"]
TEST_FILE = re.compile(r"``(test_[\w*]+\.py)``")


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_each_package_of_the_tests_has_a_map(path: Path) -> None:
    """Broken if a package of the tests has no docstring, does not name a package or a module in it that is no
    test itself, or names a file of tests that is not there."""
    inside = {each.relative_to(path.parent).parts[0] for each in files() if each.is_relative_to(path.parent)}
    parts = {name.removesuffix(".py") for name in inside if name.endswith(".py") or _is_package(path, name)}
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert text
    named = {name.removeprefix(".") for name in REFERENCE.findall(text)}
    assert {part for part in parts if not part.startswith(("test_", "_"))} <= named
    assert [name for name in TEST_FILE.findall(text) if not list(path.parent.glob(name))] == []


def _is_package(path: Path, name: str) -> bool:
    return (path.parent / name / "__init__.py").exists()


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
