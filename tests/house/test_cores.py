"""The modules of Raft, Paxos and the quorums are used only through their packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import ROOMS, ROOT, dotted, modules
from undoubt.coordinator.raft import Raft

CORES = ("raft", "paxos", "quorum")
PACKAGES = tuple(f"undoubt.coordinator.{core}" for core in CORES)
INTERNALS = "internals"
"""The property of :class:`Raft` that only the tests of its room may read."""


def _outside(*cores: str) -> Iterator[Path]:
    """The modules that belong neither to the rooms of the cores nor to their tests."""
    inside = tuple(f"{above}coordinator/{core}/" for core in cores for above in ("", "tests/"))
    for path in modules(*ROOMS, "tests", "benchmarks"):
        if not str(path.relative_to(ROOT)).startswith(inside):
            yield path


def readers(tree: ast.AST) -> Iterator[int]:
    """The lines that read an attribute that only the tests of the core's room may read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == INTERNALS:
            yield node.lineno


def imports_within(tree: ast.AST) -> Iterator[int]:
    """The lines that import a module of a core instead of its package."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        if any(name.startswith(tuple(f"{package}." for package in PACKAGES)) for name in names):
            yield node.lineno


def test_nobody_reads_the_inside_of_the_consensus_core() -> None:
    """Broken if a node, or a test of another room, depends on how the core keeps its state."""
    assert isinstance(vars(Raft)[INTERNALS], property)
    assert [
        f"{path.relative_to(ROOT)}:{line}"
        for path in _outside("raft")
        for line in readers(ast.parse(path.read_text()))
    ] == []


def test_the_cores_are_imported_by_their_packages() -> None:
    """Broken if a module of a core cannot be divided or renamed without touching another room."""
    models = ROOT / "tests/models"  # they run a decision of Paxos step by step
    assert [
        f"{dotted(path)}:{line}"
        for path in _outside(*CORES)
        if models not in path.parents
        for line in imports_within(ast.parse(path.read_text()))
    ] == []


def test_what_is_forbidden_is_found() -> None:
    """Broken if the two tests above find nothing."""
    assert list(readers(ast.parse("node.raft.internals.log"))) == [1]
    assert list(imports_within(ast.parse("from undoubt.coordinator.raft.log import Log"))) == [1]
    assert list(imports_within(ast.parse("import undoubt.coordinator.paxos.synod"))) == [1]
