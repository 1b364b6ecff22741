"""The text of the product: no reference to a place outside of it, no unfinished work, fewer vague words."""

from __future__ import annotations

import ast
import io
import itertools
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import ROOMS, ROOT, modules, texts

# The patterns are written in pieces, so that this file does not match them.
FORBIDDEN = {
    "a path of one machine": re.compile("/" + r"work/|/" + r"root/|/home/(?!user\b|app\b)\w+"),
    "a page that is not part of the product": re.compile(r"\b(DESIGN|FACTS|STYLE)" + r"\.md\b"),
    "something left undone": re.compile(r"\b(TO" + "DO|FIX" + "ME|XX" + r"X|HA" + r"CK)\b"),
}

VAGUE = re.compile(r"\b(?:nobody|somebody|whoever|everybody|anybody)\b", re.IGNORECASE)
"""These words hide which component, process or operator is meant."""
QUOTED = re.compile(r"``[^`]*``|`[^`]*`")
"""Code in a text: names of users, roles and constants do not count."""
VAGUE_MAX = {"coordinator": 40, "docs": 1, "participants": 0, "recovery": 2, "undoubt": 21}
"""How many vague words each top-level folder may have. A limit may only be lowered."""


def test_no_forbidden_words() -> None:
    """Broken if a text refers to a file that a reader does not have, or marks unfinished work."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {what}: {line.strip()[:80]}"
        for path in texts()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        for what, pattern in FORBIDDEN.items()
        if pattern.search(line)
    ]
    assert found == []


def test_invariants_survive_optimisation() -> None:
    """Broken if the product checks with ``assert``, which ``python -O`` removes; it has to use
    ``undoubt.participants.invariant.invariant``."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules(*ROOMS, "migrations")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


COUNTED = re.compile(
    r" (?:[a-z]+ )?(?:branches|decisions|entries|locks|messages|nodes|participants|problems|sessions"
    r"|transactions|voters)\b"
)


def test_one_is_not_told_as_many() -> None:
    """Broken if a message can say "1 branches": ``undoubt.participants.plural.plural`` writes a count."""
    found = [
        f"{path.relative_to(ROOT)}:{text.lineno}"
        for path in modules(*ROOMS)
        for text in ast.walk(ast.parse(path.read_text()))
        if isinstance(text, ast.JoinedStr) and _tells_many(text)
    ]
    assert found == []


def _tells_many(text: ast.JoinedStr) -> bool:
    """Whether the length of something, or a count, stands before a noun in the plural."""
    return any(
        isinstance(value, ast.FormattedValue)
        and isinstance(after, ast.Constant)
        and re.search(r"\blen\(|\bcount\b", ast.unparse(value.value)) is not None
        and COUNTED.match(str(after.value)) is not None
        for value, after in itertools.pairwise(text.values)
    )


@pytest.mark.parametrize(
    ("code", "seen"),
    [('f"{len(a)} branches"', True), ('f"{count} open sessions"', True), ('f"{name} branches"', False)],
)
def test_a_count_before_a_noun_is_seen(code: str, seen: bool) -> None:
    """Broken if the test above finds nothing."""
    [text] = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.JoinedStr)]
    assert _tells_many(text) is seen


def test_every_catch_all_gives_its_reason() -> None:
    """Broken if an ``except Exception`` does not say why it catches all errors: it could hide a bug."""
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


def prose(path: Path) -> Iterator[str]:
    """The docstrings, comments and string literals of a module; the whole text of another file."""
    text = path.read_text()
    if path.suffix != ".py":
        yield text
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            yield token.string


def vague_words(path: Path) -> list[str]:
    return [word for text in prose(path) for word in VAGUE.findall(QUOTED.sub("", text))]


def test_vague_words_become_fewer() -> None:
    """Broken if a docstring, a comment, a message or a page has a new sentence about "somebody". Name the
    component, the process or the operator."""
    found: Counter[str] = Counter()
    for path in [*modules(*ROOMS), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        found[path.relative_to(ROOT).parts[0]] += len(vague_words(path))
    above = {name: f"{found[name]} words" for name in found if found[name] > VAGUE_MAX.get(name, 0)}
    assert above == {}


def test_a_vague_word_is_seen(tmp_path: Path) -> None:
    """Broken if the count misses one of the places of a word, or counts code."""
    planted = tmp_path / "planted.py"
    planted.write_text(
        '"""Whoever, and ``nobody``."""\nnobody = 1  # Anybody\nraise ValueError(f"somebody {nobody}",'
        ' "everybody")\n'
    )
    words = [word.lower() for word in vague_words(planted)]
    assert {"whoever", "anybody", "somebody", "everybody"} <= set(words)
    assert words.count("nobody") <= 1, "only in a format of Python before 3.12"
