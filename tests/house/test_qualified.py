"""Every SQL statement of the product has one meaning, independent of ``search_path`` (CVE-2018-1058).

These tests read the text: each function, operator, cast and table must name its schema.
``tests/participants/test_foreign_ground.py`` runs the statements on a server with planted objects.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import ROOMS, ROOT, modules
from undoubt.coordinator.ledger.postgres import sql as ledger_sql
from undoubt.coordinator.ledger.postgres import tables
from undoubt.participants.postgres import sql as participant_sql

OTHERS = (
    "undoubt/demo",
    "undoubt/bench",
    "undoubt/embedded",
    "coordinator/ledger/sqlite",
    "coordinator/node",
)
"""Modules whose statements run on databases of their own, or on SQLite, which has no search_path."""
_SQL = re.compile(
    r"\s*(?:select|with\s+\w+\s+as|insert\s+into|update\s+\S+\s+set|delete\s+from)\s", re.IGNORECASE
)

STATEMENTS = {
    **{f"participant {name}": text for name, text in participant_sql.QUERIES.items()},
    **{f"ledger {name}": text for name, text in ledger_sql.QUERIES.items()},
    "ledger's first rows": tables._FIRST_ROWS,
}

_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*)
      | (?P<string>[eE]?'(?:[^']|'')*')
      | (?P<parameter>\$\d+|%\(\w+\)s|(?<!:):\w+|\{\w+\})
      | (?P<cast>::)
      | (?P<named>=>)
      | (?P<schema_operator>operator\s*\(\s*pg_catalog\.[-+*/<>=~!@\#%^&|`?]+\s*\))
      | (?P<number>\d+(?:\.\d+)?)
      | (?P<word>[a-z_]\w*(?:\.(?:[a-z_]\w*|\*))*)
      | (?P<operator>[-+*/<>=~!@\#%^&|`?]+)
      | (?P<mark>[()\[\],;])""",
    re.VERBOSE | re.IGNORECASE,
)
SCHEMAS = ("pg_catalog.", "undoubt.", "undoubt_ledger.")
GRAMMAR = {"all", "and", "any", "array", "as", "case", "coalesce", "else", "exists", "extract", "from"}
GRAMMAR |= {"greatest", "in", "join", "least", "materialized", "not", "on", "or", "select", "then", "values"}
GRAMMAR |= {"when", "where"}
"""Words that name no function before a parenthesis: keywords of the grammar, and functions that the grammar
itself takes from pg_catalog (src/backend/parser/gram.y: extract, coalesce, greatest, least)."""
BARE = frozenset({"between", "like", "ilike", "similar", "nullif", "natural", "overlaps"})
"""PostgreSQL translates these keywords to operators without a schema (src/backend/parser/gram.y,
parse_expr.c)."""


def read(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None, f"this cannot be read: {text[at : at + 40]!r}"
        if match.lastgroup != "space":
            found.append((str(match.lastgroup), match[0].lower()))
        at = match.end()
    return found


def bare(text: str) -> list[str]:
    """The names in ``text`` that PostgreSQL would look up in search_path."""
    tokens = read(text)
    words = [word for _, word in tokens]
    named = _named(words)
    found = []
    for at, (kind, word) in enumerate(tokens):
        rest = words[at + 1 :] or [""]
        match kind:
            case "operator" if not _harmless(words, at):
                found.append(f"operator {word}")
            case "cast" if not rest[0].startswith("pg_catalog."):
                found.append(f"type {rest[0]}")
            case "word":
                found += _bare_word(words, at, named)
            case _:
                pass
    return found


def _named(words: list[str]) -> set[str]:
    """The names that the statement itself defines: common table expressions and aliases."""
    body = {"(", "materialized"}
    before = {words[at - 1] for at, word in enumerate(words[:-1]) if word == "as" and words[at + 1] in body}
    after = {words[at + 1] for at, word in enumerate(words[:-1]) if word == "as"}
    return {word for word in before | after if re.fullmatch(r"[a-z_]\w*", word)} - BARE


def _harmless(words: list[str], at: int) -> bool:
    """Whether the sign is no operator: ``count(*)``, ``select *``, or the = of an assignment in a SET
    list."""
    if words[at] == "*":
        return words[at - 1] in {"(", "select", "unlisten"}
    if words[at] != "=":
        return False
    clause = next(
        (word for word in reversed(words[:at]) if word in {"set", "where", "on", "select", "when", "and"}), ""
    )
    return clause == "set" and words[at - 2] in {"set", ","}


def _bare_word(words: list[str], at: int, named: set[str]) -> Iterator[str]:
    word, next_word, last = words[at], (words[at + 1 :] or [""])[0], words[at - 1] if at else ""
    if word in BARE or (word, next_word) in {("in", "("), ("using", "("), ("distinct", "from")}:
        yield f"{word} {next_word}"
    elif word == "case" and next_word != "when":
        yield "case without when"
    elif next_word == "(" and not word.startswith(SCHEMAS) and word not in GRAMMAR | named:
        columns = last == "into" or word == "conflict"
        if not columns:
            yield f"function {word}"
    locks = last == "update" and words[at - 2 : at - 1] in (["for"], ["key"])
    table = last in {"join", "into", "update", "using"} or (last == "from" and not _in_extract(words, at - 1))
    known = word in named or word in {"select", "set", "rows"}
    if table and not locks and not known and not word.startswith(SCHEMAS):
        yield f"table {word}"


def _in_extract(words: list[str], at: int) -> bool:
    """Whether ``from`` belongs to ``extract(epoch from x)``."""
    return words[at - 3 : at - 1] == ["extract", "("]


@pytest.mark.parametrize("name", STATEMENTS)
def test_nothing_is_looked_for_along_search_path(name: str) -> None:
    """Broken if the owner of a database can create a function, an operator or a table that a statement then
    uses with the rights of undoubt's role, which may be a superuser."""
    assert bare(STATEMENTS[name]) == []


def test_nothing_outside_the_files_of_statements_either() -> None:
    """Broken if a statement is in a module that the test above does not check."""
    found = {
        f"{path.relative_to(ROOT)}: {text[:60]}": bare(text)
        for room in ROOMS
        for path in modules(room)
        if not path.relative_to(ROOT).as_posix().startswith(OTHERS)
        for text in statements(path)
    }
    assert found, "nothing was found, so nothing was checked"
    assert {name: what for name, what in found.items() if what} == {}


def statements(path: Path) -> Iterator[str]:
    """The strings of a module that look like SQL statements."""
    tree = ast.parse(path.read_text())
    pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{x}" for part in node.values]
            text = "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            text = node.value
        else:
            continue
        if _SQL.match(text):
            yield text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("select unnest($1)", "function unnest"),
        ("select pg_catalog.unnest($1::int[])", "type int"),
        ("select oid operator(pg_catalog.||) '/' || tableoid from pg_catalog.pg_class", "operator ||"),
        ("select 1 from pg_locks", "table pg_locks"),
        (
            "select 1 from pg_catalog.pg_locks as l join pg_stat_activity as a on true",
            "table pg_stat_activity",
        ),
        ("select 1 where 'a' in ('b')", "in ("),
        ("select 1 where $1 is distinct from $2", "distinct from"),
        ("select case $1 when 'a' then 1 end", "case without when"),
        ("select 1 from undoubt.a join undoubt.b using (c)", "using ("),
        ("update undoubt.a set b = c where d = 1", "operator ="),
        ("update undoubt.a set b = c operator(pg_catalog.+) 1, d = e + 1", "operator +"),
        ("select -$1", "operator -"),
        ("insert into branch (a) select 1", "table branch"),
        ("select 1 where a like 'b'", "like 'b'"),
    ],
)
def test_the_reader_sees(text: str, what: str) -> None:
    """Broken if the functions above do not find a name without a schema."""
    assert bare(text) == [what]
