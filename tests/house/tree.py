"""Lists the files of the project: those that git lists, or without git all files on the disk."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("undoubt", "recovery", "coordinator", "participants")
LINKED = ROOMS[1:]
"""Top-level folders that are packages of ``undoubt``: ``undoubt/<room>`` is a symbolic link to each."""
LINKS = {f"undoubt/{room}": f"../{room}" for room in LINKED} | {".editable/undoubt": "../undoubt"}
"""The tree's symbolic links, with their targets."""
TEXT = {".py", ".md", ".toml", ".sql", ".yaml", ".yml", ".txt", ".cfg", ".ini", ".mako", ""}


def files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not any(part.startswith(".venv") for part in path.parts)]
    return sorted(path for path in found if path.is_file())


def modules(*rooms: str) -> list[Path]:
    """The Python files of ``rooms``."""
    return [path for path in files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in rooms]


def texts() -> list[Path]:
    return [path for path in files() if path.suffix in TEXT and path.name not in {"uv.lock", "LICENSE"}]


def dotted(path: Path) -> str:
    """The dotted name of a module: ``undoubt.cli`` for ``undoubt/cli/__init__.py``, ``undoubt.recovery.scan``
    for ``recovery/scan.py``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    within = ("undoubt",) if parts[0] in LINKED else ()
    return ".".join(within + (parts[:-1] if parts[-1] == "__init__" else parts))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a file with its length in lines, including decorators and docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            yield node.name, node.end_lineno - first + 1
