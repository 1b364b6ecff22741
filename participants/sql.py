"""SQL as text: the named statements of a room, and the quoting of values that cannot be parameters.

A room's ``queries.sql`` holds its statements for a DBA to read, each under a line ``-- name: <name>``;
nothing in it depends on Python."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources

from undoubt.participants.invariant import invariant

_HEAD = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_PLACE = re.compile(r"\{(\w+)\}")


class Queries(dict[str, str]):
    """The statements in ``queries.sql`` of the package ``package``, by name. ``parts`` has the names of
    statements that later statements contain as ``{name}``."""

    def __init__(self, package: str, *, parts: Iterable[str] = ()) -> None:
        super().__init__()
        texts = _HEAD.split(resources.files(package).joinpath("queries.sql").read_text("utf-8"))
        for name, body in zip(texts[1::2], texts[2::2], strict=True):
            lines = [
                line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("--")
            ]
            statement = "\n".join(lines).removesuffix(";")
            for part in parts:
                statement = statement.replace(f"{{{part}}}", self.get(part, ""))
            self[name] = statement

    def text(self, name: str) -> str:
        """The statement called ``name``."""
        return self[name]

    def fill(self, name: str, **literals: str | None) -> str:
        """The statement called ``name`` with its ``{names}`` replaced by quoted ``literals``, and by ``null``
        for None. In one pass: a value that contains the name of another place stays as it is."""
        text = self[name]
        for key in literals:
            invariant(f"{{{key}}}" in text, f"query {name} has no place for {key}")

        def filled(place: re.Match[str]) -> str:
            if place[1] not in literals:
                return place[0]
            value = literals[place[1]]
            return "null" if value is None else literal(value)

        return _PLACE.sub(filled, text)


def literal(text: str) -> str:
    """``text`` as a string constant that is correct with both values of ``standard_conforming_strings``."""
    invariant("\0" not in text, "PostgreSQL takes no zero byte in a string")
    quoted = text.replace("'", "''")
    if "\\" in quoted:
        return " E'" + quoted.replace("\\", "\\\\") + "'"
    return f"'{quoted}'"


def identifier(text: str) -> str:
    """``text`` as a quoted identifier."""
    invariant("\0" not in text, "PostgreSQL takes no zero byte in a name")
    return '"' + text.replace('"', '""') + '"'


def names(texts: Iterable[str]) -> str:
    """``texts`` as an SQL array of type ``name[]``."""
    return f"array[{', '.join(map(literal, texts))}]::pg_catalog.name[]"
