"""Every module is used, typed, and gives what it promises."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.house.tree import LINKED, LINKS, ROOMS, ROOT, dotted, modules

RUN_BY_NAME = {"undoubt.cli", "undoubt.__main__"}
"""Modules that no other imports: entry points."""

FOR_USERS = {"undoubt.coordinator.ledger.memory", "undoubt.participants.scripted", "undoubt.logs"}
"""Shipped for those who build on undoubt: their tests, and the configuration of their logs."""


def imports(path: Path) -> set[str]:
    """Dotted names of the modules, and of what is taken from them, in a file's imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_by(path: Path) -> set[str]:
    """The same, and names in a string: commands and workers are imported by name."""
    constants = (
        node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)
    )
    return imports(path) | {value for value in constants if isinstance(value, str) and "." in value}


def test_no_dead_modules() -> None:
    """A module that nothing reaches is not tested by use, and misleads its reader."""
    product = modules(*ROOMS)
    reached = RUN_BY_NAME | FOR_USERS
    for path in product:
        reached |= imported_by(path) - {dotted(path)}
    dead = [dotted(path) for path in product if path.name != "__init__.py" and dotted(path) not in reached]
    assert dead == []


@pytest.mark.parametrize("name", [dotted(path) for path in modules(*ROOMS)])
def test_exported_names_exist(name: str) -> None:
    """``from undoubt import *`` and every editor trust ``__all__``."""
    module = importlib.import_module(name)
    assert [each for each in getattr(module, "__all__", []) if not hasattr(module, each)] == []


def test_rooms_are_imported_as_packages_of_undoubt() -> None:
    """A bare ``coordinator`` would be an application's own package, once undoubt is installed beside one."""
    bare = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules(*ROOMS, "migrations", "tests", "examples")
        for name in imports(path)
        if name.split(".")[0] in LINKED
    ]
    assert bare == []


@pytest.mark.parametrize("link", LINKS)
def test_links_go_with_the_tree(link: str) -> None:
    """An absolute one would lead out of every other checkout."""
    assert (ROOT / link).readlink() == Path(LINKS[link])


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_typed(room: str) -> None:
    """Without ``py.typed`` a user's type checker takes everything of ours for Any (PEP 561)."""
    assert (ROOT / room / "py.typed").is_file()


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_docstring_is_its_map(room: str) -> None:
    """The first thing that a newcomer to a room reads."""
    assert len((ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or "").split()) >= 20


def test_the_version_is_one() -> None:
    """``undoubt --version`` and the wheel would else disagree."""
    import tomllib  # noqa: PLC0415

    import undoubt  # noqa: PLC0415

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == undoubt.__version__
