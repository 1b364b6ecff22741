"""Values through the sidecar: nothing is lost, in either direction. PostgreSQL manual, chapter 8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.postgres import types

from tests.prove.sql_types import json_type, table
from tests.servers import Server
from tests.undoubt.sidecar.conftest import made
from tests.undoubt.sidecar.stage import Stage, staged
from undoubt.participants.bounds import OutOfBounds
from undoubt.serve.sidecar.sql_values import parameter, type_name, value

BACK: list[tuple[str, str, Any]] = [
    ("bool", "true", True),
    ("int2", "-32768", -32768),
    ("int4", "2147483647", 2147483647),
    ("int8", "9223372036854775807", "9223372036854775807"),
    ("numeric", "1.10", "1.10"),
    ("numeric", "123456789012345678901234567890.000000000000000000001", ...),
    ("numeric", "NaN", "NaN"),
    ("numeric", "Infinity", "Infinity"),
    ("float8", "0.1", 0.1),
    ("float8", "1e300", 1e300),
    ("float8", "5e-324", 5e-324),
    ("float8", "NaN", "NaN"),
    ("float8", "-Infinity", "-Infinity"),
    ("float4", "0.1", 0.1),
    ("text", "", ""),
    ("text", "NULL", "NULL"),
    ("text", "ä€😀\n\t\\'\"", ...),
    ("varchar", "x", "x"),
    ("bytea", "\\x00ff10", "\\x00ff10"),
    ("bytea", "\\x", "\\x"),
    ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", ...),
    ("date", "0044-03-15 BC", ...),
    ("date", "infinity", "infinity"),
    ("timestamp", "294276-12-31 23:59:59.999999", ...),
    ("timestamptz", "2026-03-29 01:30:00.123456+00", ...),
    ("timestamptz", "-infinity", "-infinity"),
    ("timestamptz", "2026-03-29 03:30:00+02", "2026-03-29 01:30:00+00"),
    ("time", "24:00:00", "24:00:00"),
    ("timetz", "12:00:00.5+05:30", ...),
    ("interval", "1 year 2 mons -3 days +04:05:06.789", "1 year 2 mons -3 days +04:05:06.789"),
    ("json", '{"a": 1.00000000000000000000001, "a": null}', ...),
    ("jsonb", "null", "null"),
    ("jsonb", '{"n": 12345678901234567890.5}', '{"n": 12345678901234567890.5}'),
    ("inet", "10.0.0.1/8", "10.0.0.1/8"),
    ("macaddr", "08:00:2b:01:02:03", ...),
    ("bit", "1", "1"),
    ("point", "(1,2)", "(1,2)"),
    ("int4range", "[1,10)", "[1,10)"),
    ("tsvector", "'a':1 'b':2", ...),
    ("xid8", "18446744073709551615", "18446744073709551615"),
    ("pg_lsn", "16/B374D848", "16/B374D848"),
]


ONE_OF_EACH: dict[str, bytes] = {
    "bool": b"t",
    "int2": b"1",
    "int4": b"1",
    "oid": b"1",
    "int8": b"1",
    "float4": b"1",
    "float8": b"1",
    "numeric": b"1",
    "json": b"1",
    "jsonb": b"1",
    "bytea": b"\\x",
    "timestamptz": b"infinity",
}
"""The types that the page's table names, and the server's text of a value."""

ODD = ["NULL", None, "", 'a"b\\c', "{x,y}", " z "]


@pytest.fixture(scope="module")
def work(stage: Stage) -> Any:
    made = stage.tcp().begin(timeout_ms=120_000)
    yield made
    made.rollback()


@pytest.mark.parametrize(("type_", "text", "json_"), BACK)
def test_a_value_comes_back_as_it_went(work: Any, type_: str, text: str, json_: Any) -> None:
    """By its place alone, and by its type's name; and what came back goes in again."""
    wanted = text if json_ is ... else json_
    first = work.run(f"select $1::{type_}", text)
    assert first["rows"] == [[wanted]]
    assert type(first["rows"][0][0]) is type(wanted)
    again = work.run(f"select $1::{type_}, $1::{type_} is not null", first["rows"][0][0])
    assert again["rows"] == [[wanted, True]]
    if type_ not in {"json", "jsonb"}:
        assert work.run("select $1", {"type": type_, "value": wanted})["rows"] == [[wanted]]


@pytest.mark.parametrize("type_", sorted({type_ for type_, _, _ in BACK}))
def test_null(work: Any, type_: str) -> None:
    """And the document null is another value."""
    assert work.run(f"select $1::{type_}, $1::{type_} is null", None)["rows"] == [[None, True]]


@pytest.mark.parametrize(
    ("type_", "sent", "back"),
    [
        ("int4[]", [1, None, 3], [1, None, 3]),
        ("int8[]", ["9007199254740993"], ["9007199254740993"]),
        ("int4[]", [], []),
        ("int4[]", [[1, 2], [3, None]], [[1, 2], [3, None]]),
        (
            "text[]",
            ["NULL", None, "", 'a"b\\c', "{x,y}", " z "],
            ["NULL", None, "", 'a"b\\c', "{x,y}", " z "],
        ),
        ("numeric[]", ["1.10", "NaN"], ["1.10", "NaN"]),
        ("bool[]", [True, False, None], [True, False, None]),
        ("bytea[]", ["\\x00ff"], ["\\x00ff"]),
        ("timestamptz[]", ["2026-01-01 00:00:00+00"], ["2026-01-01 00:00:00+00"]),
        ("jsonb[]", ['{"a": "}"}', "null"], ['{"a": "}"}', "null"]),
        ("float8[]", [0.1, "Infinity"], [0.1, "Infinity"]),
    ],
)
def test_arrays(work: Any, type_: str, sent: list[Any], back: list[Any]) -> None:
    assert work.run(f"select $1::{type_}", sent)["rows"] == [[back]]
    assert work.run("select $1", {"type": type_, "value": back})["rows"] == [[back]]


def test_an_array_with_other_bounds_is_its_text(work: Any) -> None:
    """JSON's lists begin at one place."""
    assert work.run("select '[0:1]={1,2}'::int4[]")["rows"] == [["[0:1]={1,2}"]]
    assert work.run("select '{(1,1),(0,0);(3,3),(2,2)}'::box[]")["rows"] == [["{(1,1),(0,0);(3,3),(2,2)}"]]


def test_documents(work: Any) -> None:
    """Written as they are where their type is said; a string is the text of one, as it comes back."""
    for sent, back in (
        ({"a": [1, None]}, '{"a": [1, null]}'),
        ([1], "[1]"),
        (1.5, "1.5"),
        ('"text"', '"text"'),
        ("null", "null"),
        (None, None),
    ):
        assert work.run("select $1", {"type": "jsonb", "value": sent})["rows"] == [[back]]


def test_numbers_keep_their_digits(work: Any) -> None:
    """A client's JSON library writes 1.10 as it was; a float of ours would not."""
    sql = b'"select $1::numeric, $2::int8"'
    body = b'{"participant": "orders", "sql": %b, "params": [1.10, 9007199254740993]}' % sql
    answer = work.client.http.post(
        f"{work.path}/statements", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.json()["rows"] == [["1.10", "9007199254740993"]]


def test_types_of_the_database(work: Any) -> None:
    work.run("create type pg_temp.mood as enum ('sad', 'happy')")
    told = work.run("select $1::pg_temp.mood as m", "happy")
    assert told["rows"] == [["happy"]]
    assert told["columns"][0]["type"].startswith("oid ")
    work.run("drop type pg_temp.mood")


@pytest.mark.parametrize("rows", [0, 1, 99, 100, 101, 1000])
def test_rows_and_tag(work: Any, rows: int) -> None:
    """In whatever portions they come."""
    told = work.run("select n, n::text from generate_series(1, $1) as n", rows)
    assert told["rows"] == [[n, str(n)] for n in range(1, rows + 1)]
    assert [column["name"] for column in told["columns"]] == ["n", "n"]


def test_one_statement_at_a_time(work: Any) -> None:
    """So that a value cannot become a statement."""
    work.run("savepoint one")
    answer = work.sql("select 1; select 2")
    assert answer.json()["sqlstate"] == "42601"
    work.run("rollback to one")


@pytest.mark.parametrize(
    "wrong",
    [
        {"a": 1},
        {"type": "nothing", "value": 1},
        {"type": "int4"},
        [{"a": 1}],
        "nul\0l",
        [[[[[[[1]]]]]]],
        {"type": "int4", "value": {"a": 1}},
    ],
)
def test_what_is_no_parameter(work: Any, wrong: Any) -> None:
    """Refused before anything is sent: the transaction goes on."""
    answer = work.sql("select $1::text", wrong)
    assert (answer.status_code, answer.json()["name"]) == (422, "UsageError")
    assert work.run("select 1")["rows"] == [[1]]


@given(st.recursive(st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.lists))
def test_arrays_read_what_they_write(values: Any) -> None:
    """Of any nesting that PostgreSQL would take, or not."""
    if not isinstance(values, list) or not values:
        return
    try:
        text = parameter(json.dumps(values).encode()).text
    except OutOfBounds:
        return
    assert value(text, "text[]") == values


@given(st.binary())
def test_no_bytes_do_harm(raw: bytes) -> None:
    """Whatever a client has put between the commas."""
    try:
        decoded = msgspec.json.decode(raw, type=msgspec.Raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return
    try:
        parameter(bytes(decoded))
    except (OutOfBounds, msgspec.MsgspecError):
        return


def test_names_of_types() -> None:
    assert (type_name(23), type_name(1007), type_name(99_999)) == ("int4", "int4[]", "oid 99999")


def test_settings_of_the_database_lose_nothing(postgres: Server, tmp_path: Path) -> None:
    """Broken if values are written as the owner of a database likes: with fewer digits, with the abbreviation
    of a time zone, or NULL as a word. And the client may still choose how its transaction is isolated."""
    dsn = made(postgres, "sidecar_settings")
    with psycopg.connect(dsn, autocommit=True) as admin:
        for setting in (
            "extra_float_digits = 0",
            "array_nulls = off",
            "datestyle = 'SQL, DMY'",
            "timezone = 'Asia/Kolkata'",
            "bytea_output = 'escape'",
            "client_encoding = 'LATIN1'",
            "intervalstyle = 'sql_standard'",
        ):
            admin.execute(f"alter database sidecar_settings set {setting}".encode())
    with staged(tmp_path, {"orders": dsn}) as stage:
        work = stage.tcp().begin(timeout_ms=60_000)
        work.run("set transaction isolation level serializable")
        told = work.run(
            "select $1::float8, $2::text[], $3::timestamptz, $4::bytea, $5, $6::interval",
            0.30000000000000004,
            [None, "ä"],
            "2026-01-31 00:00:00+00",
            "\\x00",
            {"type": "text", "value": "ä€"},
            "1 day",
        )
        assert told["rows"] == [
            [0.30000000000000004, [None, "ä"], "2026-01-31 05:30:00+05:30", "\\x00", "ä€", "1 day"]
        ]
        assert work.run("show transaction_isolation")["rows"] == [["serializable"]]
        assert work.rollback().status_code == 200


def test_text_that_is_not_utf8(stage: Stage) -> None:
    """Broken if it is answered by an internal error, or by other text."""
    work = stage.tcp().begin(timeout_ms=60_000)
    work.run("set local client_encoding = 'LATIN1'")
    answer = work.sql("select chr(228)")
    assert (answer.status_code, answer.json()["name"]) == (409, "TransactionAborted")
    assert answer.json()["reason"].startswith("NotUtf8")


def test_the_page_has_the_table_of_the_code() -> None:
    """Broken if ``docs/sidecar.md`` tells another JSON type than the one that is sent."""
    page = table()
    for type_, text in ONE_OF_EACH.items():
        assert json_type(value(text, type_)) in page[type_]
        if "number" in page[type_]:
            for literal in page[type_] - {"number"}:
                assert value(literal.encode(), type_) == literal
    named = {*page} - {"NULL", "arrays", "everything else"}
    assert named == {*ONE_OF_EACH}
    others = {info.name for info in types if info.name not in named}
    assert {json_type(value(b"1", name)) for name in others} == {"string"} == page["everything else"]
    assert json_type(value(b"{1}", "int4[]")) == "list"
    assert page["arrays"] == {"list"}
