"""Every module is used and typed, and has the names in its ``__all__``."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.house.reading import circles, reply_loops, same_named_public_classes
from tests.house.tree import LINKED, LINKS, ROOMS, ROOT, dotted, modules

RUN_BY_NAME = {"undoubt.cli", "undoubt.__main__"}
"""Entry points: modules that no other module imports."""

FOR_USERS = {
    "undoubt.coordinator.ledger.memory",
    "undoubt.integrations.httpx",
    "undoubt.integrations.celery",
    "undoubt.integrations.django",
    "undoubt.integrations.fastapi",
    "undoubt.integrations.flask",
    "undoubt.integrations.pytest.plugin",
    "undoubt.integrations.quart",
    "undoubt.integrations.rq",
    "undoubt.integrations.sqlmodel",
    "undoubt.integrations.starlette",
    "undoubt.integrations.zope",
    "undoubt.logs",
    "undoubt.participants.scripted",
}
"""Shipped for those who build on undoubt: their services, tests, and the configuration of their logs."""


def imports(path: Path) -> set[str]:
    """The dotted names of the modules that a file imports, and of the names that it imports from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_by(path: Path) -> set[str]:
    """The imported names, and module names in strings: commands and workers are imported by name."""
    constants = (
        node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)
    )
    return imports(path) | {value for value in constants if isinstance(value, str) and "." in value}


def test_imports_make_no_circle() -> None:
    assert circles() == []


def test_no_two_public_classes_have_one_name() -> None:
    """Broken if a name in a message, in the glossary or in a search means two things."""
    assert same_named_public_classes() == {}


def test_replies_are_given_to_their_callers_in_one_place() -> None:
    """Broken if a second protocol of requests and replies is added beside :mod:`undoubt.coordinator.rpc`."""
    assert reply_loops() == ["undoubt.coordinator.rpc.client.received"]


def test_no_dead_modules() -> None:
    """Broken if no other module imports a module, and it is no entry point."""
    product = modules(*ROOMS)
    reached = RUN_BY_NAME | FOR_USERS
    for path in product:
        reached |= imported_by(path) - {dotted(path)}
    dead = [dotted(path) for path in product if path.name != "__init__.py" and dotted(path) not in reached]
    assert dead == []


@pytest.mark.parametrize("name", [dotted(path) for path in modules(*ROOMS)])
def test_exported_names_exist(name: str) -> None:
    """Broken if ``__all__`` has a name that the module does not have."""
    module = importlib.import_module(name)
    assert [each for each in getattr(module, "__all__", []) if not hasattr(module, each)] == []


def test_rooms_are_imported_as_packages_of_undoubt() -> None:
    """Broken if a module imports a room as a top-level package: that could be a package of an application."""
    bare = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules(*ROOMS, "migrations", "tests", "examples")
        for name in imports(path)
        if name.split(".")[0] in LINKED
    ]
    assert bare == []


@pytest.mark.parametrize("link", LINKS)
def test_links_go_with_the_tree(link: str) -> None:
    """Broken if a symbolic link is absolute: in another checkout it would lead to other files."""
    assert (ROOT / link).readlink() == Path(LINKS[link])


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_typed(room: str) -> None:
    """Broken if ``py.typed`` is missing: type checkers would treat all names of undoubt as Any (PEP 561)."""
    assert (ROOT / room / "py.typed").is_file()


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_docstring_is_its_map(room: str) -> None:
    """Broken if a package has no docstring, in which a reader looks first."""
    assert len((ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or "").split()) >= 20


def test_the_version_is_one() -> None:
    """Broken if ``undoubt --version`` and the wheel report different versions."""
    import tomllib  # noqa: PLC0415

    import undoubt  # noqa: PLC0415

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == undoubt.__version__
