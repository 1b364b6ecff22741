"""The product stands alone: nothing in it names the place it was written at, and nothing is left undone."""

from __future__ import annotations

import ast
import re

from tests.house.tree import ROOMS, ROOT, modules, texts

# Spelled in pieces, so that this file is not its own first finding.
FORBIDDEN = {
    "a path of one machine": re.compile("/" + r"work/|/" + r"root/|/home/(?!user\b|app\b)\w+"),
    "a page that is not part of the product": re.compile(r"\b(DESIGN|FACTS|STYLE)" + r"\.md\b"),
    "something left undone": re.compile(r"\b(TO" + "DO|FIX" + "ME|XX" + r"X|HA" + r"CK)\b"),
}


def test_no_forbidden_words() -> None:
    """A reader outside could not follow the reference, or would find unfinished work."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {what}: {line.strip()[:80]}"
        for path in texts()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        for what, pattern in FORBIDDEN.items()
        if pattern.search(line)
    ]
    assert found == []


def test_invariants_survive_optimisation() -> None:
    """``assert`` vanishes under ``python -O``; the product uses
    ``undoubt.participants.invariant.invariant``."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules(*ROOMS, "migrations")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_every_catch_all_gives_its_reason() -> None:
    """A caught ``Exception`` without a reason hides the next bug."""
    found = []
    for path in modules(*ROOMS):
        source = path.read_text()
        rows = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            wide = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}
            )
            passed_on = isinstance(node.body[-1], ast.Raise)
            near = " ".join(rows[max(node.lineno - 2, 0) : node.body[0].lineno])
            reason = re.sub(r"noqa: ?[A-Z0-9, ]+", "", near)
            if wide and not passed_on and not re.search(r"#[\s:-]*\w", reason):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
