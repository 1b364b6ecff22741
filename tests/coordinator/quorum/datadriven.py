"""Reads etcd-io/raft's data-driven files: command, input, ``----``, output, blank line."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CONFORMANCE = Path(__file__).resolve().parents[4] / "shared" / "conformance"


@dataclass(frozen=True)
class Case:
    where: str
    command: str
    arguments: dict[str, tuple[str, ...]]
    given: list[str]
    expected: list[str] = field(default_factory=list)


def arguments_of(line: str) -> dict[str, tuple[str, ...]]:
    """``cfg=(1, 2) autoleave=true`` as ``{"cfg": ("1", "2"), "autoleave": ("true",)}``."""
    found = re.findall(r"(\w+)=(\([^)]*\)|\S+)", line)
    return {
        name: tuple(part.strip() for part in value.strip("()").split(",") if part.strip())
        for name, value in found
    }


def parse(path: Path) -> list[Case]:
    lines = path.read_text().splitlines()
    cases: list[Case] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if not line.strip() or line.startswith("#"):
            continue
        where, given, expected = f"{path.name}:{at}", list[str](), list[str]()
        while lines[at] != "----":
            given.append(lines[at])
            at += 1
        at += 1
        while at < len(lines) and lines[at].strip():
            expected.append(lines[at])
            at += 1
        cases.append(Case(where, line.split()[0], arguments_of(line), given, expected))
    return cases


def folder(name: str) -> list[Path]:
    """The files of ``name``; skips the calling test, or fails it in CI, where there are none."""
    files = sorted((CONFORMANCE / name).glob("*.txt"))
    if not files:
        missing = f"outside cases are not part of this checkout: {CONFORMANCE / name}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"required in CI, and missing: {missing}")
        pytest.skip(missing)
    return files
