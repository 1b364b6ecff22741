"""Reads a Dockerfile: its stages, each with its instructions in order."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """``instructions``: pairs of a word in capitals and its arguments as text."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for each, rest in self.instructions if each == word]

    def last(self, word: str) -> str:
        """The one that counts of those of which one counts; empty if there is none."""
        return (self.all(word) or [""])[-1]

    @property
    def environment(self) -> dict[str, str]:
        pairs = (pair.split("=", 1) for rest in self.all("ENV") for pair in shlex.split(rest))
        return {name: value for name, value in pairs}  # noqa: C416 - mypy knows no dict of lists


def read(path: Path) -> list[Stage]:
    """The stages of the Dockerfile, the image's own last."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[Stage] = []
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name))
        elif stages:
            stages[-1].instructions.append((word, rest.strip()))
    return stages


def words(form: str) -> list[str]:
    """The words of an instruction in the form that needs no shell. Raises ``ValueError``."""
    found = json.loads(form)
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise ValueError(form)
    return found
