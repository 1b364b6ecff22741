"""How results are printed: data on stdout, as a table or as JSON, everything else on stderr.

JSON is one object or one array with stable keys; moments are ISO 8601 in UTC, with an age in seconds
beside them. Tables use colour and lines only on a terminal without ``NO_COLOR`` (https://no-color.org).
What comes from a database's catalog may hold any character: control characters are never printed raw.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec

TABLE, JSON = "table", "json"


_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""What is drawn as nothing: of Unicode's property Default_Ignorable_Code_Point those characters that
:meth:`str.isprintable` takes for printable (https://www.unicode.org/reports/tr44/), and the empty cell of
Braille."""
_SPACES = re.compile("^ | $|(?<= ) ")


def printable(value: object) -> str:
    """``value`` as text without control characters, and without those that are not seen: a foreign gid could
    otherwise move the cursor, hide text, or look like another one."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() and not _UNSEEN.match(c) else _written(c) for c in text)


def printable_cell(value: object) -> str:
    """As :func:`printable`; a space at an end, or after another one, is written too."""
    return _SPACES.sub(lambda _: "\\x20", printable(value))


def _written(character: str) -> str:
    return repr(character)[1:-1] if not character.isprintable() else ascii(character)[1:-1]


def styled() -> bool:
    """Whether stdout is a terminal whose user has not asked for plain text."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Output:
    """Prints the results of a command. ``format`` is ``table`` or ``json``."""

    def __init__(self, form: str = TABLE) -> None:
        self.form = form

    @property
    def json(self) -> bool:
        return self.form == JSON

    def document(self, document: Any) -> None:
        """One JSON value, indented, on stdout."""
        encoded = msgspec.json.format(msgspec.json.encode(document), indent=2)
        click.echo(encoded.decode())

    def note(self, text: str) -> None:
        """Print a remark on stderr."""
        click.echo(printable_lines(text), err=True)

    def line(self, text: str = "") -> None:
        """Print a line of a page on stdout."""
        click.echo(printable_lines(text))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print one line for each row. Plain tables are never cut: a column is as wide as its longest
        value."""
        cells = [[printable_cell(cell) for cell in row] for row in rows]
        if styled():
            _rich_table(columns, cells)
            return
        lines = [[column.upper() for column in columns], *cells]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        for line in lines:
            padded = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            click.echo(padded.rstrip())

    def heading(self, text: str) -> None:
        self.line(click.style(text, bold=True) if styled() else text)


def printable_lines(text: str) -> str:
    """As :func:`printable`, keeping line breaks and the colours that this program added itself."""
    return "\n".join(line if "\x1b" in line and styled() else printable(line) for line in text.split("\n"))


def _rich_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    # rich costs as much to import as the rest of the command, and most runs are not on a terminal.
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
