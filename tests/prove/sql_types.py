"""SQL values through the sidecar and back: nothing is lost.

psycopg writes each value; the sidecar reads it, and its JSON goes through a client whose numbers are those of
JavaScript, back into the same row: by the parameter's place alone, and with its type's name. The text of the
value is sent as well. Then psycopg compares what the database holds, in the binary format of the type. Each
is done with the settings of a database that writes values unlike the sidecar's sessions, and once more after
the client has changed such settings in its transaction.

``values`` counts the values, ``lost`` those of which any of this lost something, ``unlike_the_docs`` those
that had another JSON type than the table in ``docs/sidecar.md`` says. ``control``: values lost in copies of
the tree with bugs planted, the least of them."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.prove.control import control
from tests.prove.processes import ROOT
from tests.prove.sql_types_cases import MAKE, Value, values
from tests.undoubt.sidecar.stage import Client, Work, staged
from undoubt.embedded import EmbeddedServer

DATABASE = "orders"
"""The participant in which the stage's sidecar runs statements."""
COLUMNS = ("given", "by_text", "by_place", "by_name")
OF_THE_DATABASE = (
    ("timezone", "Asia/Kathmandu"),
    ("datestyle", "SQL, DMY"),
    ("intervalstyle", "sql_standard"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "0"),
    ("array_nulls", "off"),
    ("client_encoding", "LATIN1"),
    ("standard_conforming_strings", "off"),
    ("xmloption", "document"),
)
OF_THE_CLIENT = (
    "set local timezone = 'Africa/Monrovia'",
    "set local datestyle = 'DMY'",
    "set local intervalstyle = 'iso_8601'",
    "set local bytea_output = 'escape'",
)
"""With these too, the server reads what it has written; before 1972 Monrovia was 44 minutes and 30 seconds
from Greenwich."""
PSYCOPG = "-c datestyle=ISO -c timezone=UTC -c xmloption=content -c array_nulls=on -c client_encoding=UTF8"
PLANTED = (
    "sidecar-big-numbers-as-numbers",
    "sidecar-null-is-text",
    "sidecar-bounds-are-lost",
    "sidecar-text-as-the-database-likes",
)
CONTROL_S = 300.0
UNREADABLE = ("a\0b", ["\0"], {"type": "text", "value": "\0"})
"""Parameters that PostgreSQL cannot store."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-control", action="store_true")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    async with EmbeddedServer() as server:
        dsn = await server.create_database(DATABASE)
        told = await asyncio.to_thread(_all, dsn)
    holds = told["values"] >= 200 and not (told["lost"] or told["unlike_the_docs"] or told["not_refused"])
    if not options.no_control:
        told["control"] = min([await _found(planted) for planted in PLANTED])
        holds = holds and told["control"] >= 1
    return told, holds


async def _found(planted: str) -> int:
    found = await control("types", "--no-control", mutants=[planted], timeout_s=CONTROL_S)
    print(f"with {planted}: {found.result['lost']} lost", file=sys.stderr)
    return int(found.result["lost"])


def _all(dsn: str) -> dict[str, Any]:
    lost: list[str] = []
    unlike: list[str] = []
    with (
        psycopg.connect(dsn, autocommit=True, options=PSYCOPG, prepare_threshold=None) as database,
        tempfile.TemporaryDirectory(prefix="undoubt-types-") as folder,
    ):
        prepare_database(database)
        missing = left_out(database)
        every = [value for value in values() if value.type not in missing]
        with staged(Path(folder), {DATABASE: dsn}) as stage:
            client = stage.tcp()
            for type_ in dict.fromkeys(value.type for value in every):
                for settings in ((), OF_THE_CLIENT):
                    of_type = [value for value in every if value.type == type_]
                    trip = Trip(database, client, of_type, settings)
                    lost += trip.lost()
                    unlike += trip.unlike
            not_refused = accepted(client)
    for line in (*lost, *unlike):
        print(line, file=sys.stderr)
    return {
        "values": len(every),
        "types": len({value.type for value in every}),
        "left_out": missing,
        "lost": len(lost),
        "unlike_the_docs": len(unlike),
        "not_refused": not_refused,
    }


def prepare_database(database: psycopg.Connection[Any]) -> None:
    """Types, and settings that change how values are written."""
    for make in MAKE:
        database.execute(make.encode())
    for name, value in OF_THE_DATABASE:
        database.execute(
            sql.SQL("alter database {} set {} = {}").format(
                sql.Identifier(DATABASE), sql.Identifier(name), sql.Literal(value)
            )
        )


def left_out(database: psycopg.Connection[Any]) -> list[str]:
    """Types that the server was built without."""
    try:
        database.execute("select '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        return ["xml", "xml[]"]
    return []


class Trip:
    """Of all values of one type: into a table, through the sidecar, and back into it."""

    def __init__(
        self,
        database: psycopg.Connection[Any],
        client: Client,
        of_type: list[Value],
        settings: tuple[str, ...],
    ) -> None:
        self._database = database
        self._client = client
        self._values = of_type
        self._settings = settings
        self.unlike: list[str] = []

    def lost(self) -> list[str]:
        """What each value that has lost something has lost."""
        type_ = self._values[0].type
        columns = ", ".join(f"{column} {type_}" for column in COLUMNS)
        self._database.execute("drop table if exists trip")
        self._database.execute(f"create table trip (id int primary key, {columns})".encode())
        for number, value in enumerate(self._values):
            self._database.execute(
                f"insert into trip values (%s, %s::{type_})".encode(), (number, value.text)
            )
        work = self._client.begin(timeout_ms=120_000)
        for setting in self._settings:
            work.run(setting)
        failed = {}
        for number, value in enumerate(self._values):
            if why := self._goes(work, number, value):
                failed[number] = why
        answer = work.commit()
        if answer.status_code != 200:
            return [f"{type_}: {answer.text}"]
        return [
            *(f"{self._values[number]}: {why}" for number, why in failed.items()),
            *self._unlike_in(failed),
        ]

    def _goes(self, work: Work, number: int, value: Value) -> str:
        """What the sidecar refused of it."""
        work.run("savepoint one")
        told = work.run("select given from trip where id = $1", number)
        type_ = told["columns"][0]["type"]
        read = as_javascript(told["rows"][0][0])
        if value.text is not None and (kind := json_type(read)) not in documented(type_, value, read):
            self.unlike.append(f"{value}: {kind}, {read!r:.80}")
        sent = {"by_text": value.text, "by_place": read}
        if not type_.startswith("oid "):
            sent["by_name"] = {"type": type_, "value": read}
        for column, parameter in sent.items():
            answer = work.sql(f"update trip set {column} = $1 where id = $2", parameter, number)
            if answer.status_code != 200:
                work.run("rollback to one")
                return f"{column}: {answer.text}"
        if "by_name" not in sent:
            work.run("update trip set by_name = given where id = $1", number)
        return ""

    def _unlike_in(self, failed: dict[int, str]) -> Iterator[str]:
        """Values of which a column holds another one than psycopg wrote."""
        cursor = self._database.cursor(binary=True)
        for number, *columns in raw(cursor, f"select id, {', '.join(COLUMNS)} from trip order by id"):
            which = int.from_bytes(number or b"", "big")
            for column, found in zip(COLUMNS, columns, strict=True):
                if which not in failed and found != columns[0]:
                    yield f"{self._values[which]}: {column}: {columns[0]!r:.80} became {found!r:.80}"


def raw(cursor: psycopg.Cursor[Any], query: str) -> Iterator[tuple[bytes | None, ...]]:
    """The rows in the binary format, as the server sends them."""
    cursor.execute(query.encode())
    result = cursor.pgresult
    assert result is not None
    for row in range(result.ntuples):
        yield tuple(result.get_value(row, column) for column in range(result.nfields))


def as_javascript(value: Any) -> Any:
    """Its numbers are doubles."""
    match value:
        case bool():
            return value
        case int():
            return int(float(value))
        case list():
            return [as_javascript(each) for each in value]
        case _:
            return value


def json_type(value: Any) -> str:
    """The name that the table of the page has for it."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case list():
            return "list"
        case _:
            return "string"


def documented(type_: str, value: Value, read: Any) -> set[str]:
    """The JSON types that the page's table allows for it."""
    if type_.endswith("[]"):
        explicit = value.text is not None and value.text.startswith("[")
        return {"string"} if explicit or type_ == "box[]" else {"list"}
    of_the_page = table()
    kinds = of_the_page.get(type_, of_the_page["everything else"])
    if "number" in kinds and isinstance(read, str):
        return {"string"} if read in kinds else set()
    return kinds & {"number"} or kinds


def table(page: Path = ROOT / "docs" / "sidecar.md") -> dict[str, set[str]]:
    """By type, from the page: JSON types, and literals in quotation marks that stand for values."""
    section = page.read_text().partition("### Values")[2].partition("\n## ")[0]
    found: dict[str, set[str]] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 3 or cells[0] in {"type", "---"}:
            continue
        kinds = set(re.findall(r"\b(?:number|string|list)\b", re.sub("`[^`]*`", "", cells[1])))
        literals = re.findall("`([^`]*)`", cells[1])
        if "true" in literals:
            kinds.add("boolean")
        if "null" in literals:
            kinds.add("null")
        kinds |= {literal.strip('"') for literal in literals if literal.startswith('"') and "number" in kinds}
        for name in re.findall("`([^`]*)`", cells[0]) or [cells[0]]:
            found[name] = kinds
    return found


def accepted(client: Client) -> list[str]:
    """Parameters that had to be refused by their names, before anything is sent."""
    work = client.begin(timeout_ms=60_000)
    found = []
    for parameter in UNREADABLE:
        answer = work.sql("select $1::text", parameter)
        if (answer.status_code, answer.json().get("name")) != (422, "UsageError"):
            found.append(f"{parameter!r}: {answer.text}")
    if work.run("select 1")["rows"] != [[1]]:
        found.append("the transaction does not go on")
    work.rollback()
    return found
