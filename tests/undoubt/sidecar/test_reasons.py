"""The reasons and details that HTTP clients read give no advice that only a Python program can follow."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prove.processes import ROOT
from undoubt.errors import BranchFailed, TransactionAborted, UnknownParticipant
from undoubt.participants.ids import TxId
from undoubt.participants.postgres.sqlstate import ENDED_BY_APPLICATION, SWALLOWED
from undoubt.serve.sidecar.problems import refusal_of

TXID = TxId.parse("1-0123456789abcdef.7")
PYTHON = re.compile(
    r"\basync with\b|\bawait\b|\bPython\b|\b[a-z_]+\.[a-z_]+\(|\btx\.[a-z]|\bcoordinator\.[a-z]+\("
)
OF_CATALOG = re.compile(r"pg_catalog\.|\bpg_[a-z_]+\(|undoubt\.[a-z_]+\(")
"""SQL, which any client can send."""
ROOMS = ("coordinator/protocols", "participants/postgres/sqlstate.py", "recovery", "undoubt/serve/sidecar")
"""Where the messages are written that become reasons: the modules of drivers and of blocks talk to Python."""


def modules() -> list[Path]:
    found = []
    for room in ROOMS:
        path = ROOT / room
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return found


def texts(module: Path) -> Iterator[str]:
    """All texts of a module but its docstrings; of an f-string, what is fixed."""
    tree = ast.parse(module.read_text())
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def test_no_message_of_a_room_behind_the_sidecar_is_for_python_only() -> None:
    """Broken if a user of curl or Node.js is told to write ``async with``."""
    assert PYTHON.search("use 'async with connection.transaction()'")
    wrong = [
        (module.name, text)
        for module in modules()
        for text in texts(module)
        if " " in text and PYTHON.search(text) and not OF_CATALOG.search(text)
    ]
    notes = [found for found in wrong if "the commit of transaction" not in found[1]]  # a note, never sent
    assert notes == []


@pytest.mark.parametrize(
    "error",
    [
        TransactionAborted(TXID, BranchFailed("orders", SWALLOWED)),
        TransactionAborted(TXID, BranchFailed("orders", ENDED_BY_APPLICATION)),
        UnknownParticipant("order", ["orders"]),
    ],
    ids=["swallowed", "ended", "unknown"],
)
def test_a_problem_gives_advice_that_every_client_can_follow(error: Exception) -> None:
    problem = refusal_of(error).problem
    assert PYTHON.search(f"{problem.detail} {problem.reason or ''}") is None
