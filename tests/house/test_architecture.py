"""Compares ARCHITECTURE.md with the code."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator

import pytest

from tests.house.architecture import DISKS, PATH, files_named, section
from tests.house.tree import ROOT, files
from undoubt.coordinator.ledger.group_commit import TRANSITIONS, DiskEvent, DiskState

GLOSSARY = "Glossary"
LOOP = "The driver loop of Raft"


@pytest.mark.parametrize("heading", [PATH, DISKS, LOOP])
def test_every_file_of_a_commit_exists(heading: str) -> None:
    """Broken if the files do not exist. ``tests.prove.house`` checks that a commit enters them."""
    assert (named := files_named(heading))
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_every_path_leads_somewhere() -> None:
    """Broken if a link, or a path in backquotes, leads to no file. A path may be the last part of a file's
    path."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    paths = re.findall(r"\]\((?!#|http)([^)]+)\)|`([\w/]+\.(?:py|md|sql))`", text)
    known = [f"/{path.relative_to(ROOT)}" for path in files()]
    names = {link or path for link, path in paths}
    assert {name for name in names if not any(path.endswith(f"/{name}") for path in known)} == set()


def test_every_name_of_the_glossary_exists() -> None:
    names = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| ", section(GLOSSARY), re.MULTILINE)
    assert len(names) > 40
    assert len({name for name, _ in names}) == len(names)
    assert [name for name, module in names if not hasattr(importlib.import_module(module), name)] == []


def test_the_driver_loop_is_the_codes() -> None:
    """Broken if the shortened loop uses a name that the code does not use, or in another order."""
    code = {}
    for name in files_named(LOOP):
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.FunctionDef):
                code[node.name.removeprefix("_")] = list(_used(node))
    block = re.search(r"```python\n(.*?)```", section(LOOP), re.DOTALL)
    assert block is not None
    shown = [node for node in ast.parse(block[1]).body if isinstance(node, ast.FunctionDef)]
    assert len(shown) == 3
    for function in shown:
        rest = iter(code[function.name])
        assert [word for word in _used(function) if word not in rest] == [], function.name


def test_the_states_of_a_disk_are_the_codes() -> None:
    """Broken if the table in ARCHITECTURE.md and the table in the code differ."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section("The states of a disk").splitlines()
        if line.startswith("| ")
    ]
    (_, *events), states = rows[0], rows[1:]
    assert events == list(DiskEvent)
    assert [state for state, *_ in states] == list(DiskState)
    shown = {
        (DiskState(state), DiskEvent(event)): to
        for state, *cells in states
        for event, to in zip(events, cells, strict=True)
        if to
    }
    assert shown == TRANSITIONS


def _used(function: ast.AST) -> Iterator[str]:
    """The names of attributes in the order of the text, without the underscore of private attributes."""
    found = [node for node in ast.walk(function) if isinstance(node, ast.Attribute)]
    for node in sorted(found, key=lambda node: (node.end_lineno, node.end_col_offset)):
        yield node.attr.removeprefix("_")
