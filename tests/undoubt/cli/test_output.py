"""Tables and JSON: what scripts parse and what a hostile catalog may not do to a terminal."""

from __future__ import annotations

import json
import sys

import pytest

from undoubt.cli import output
from undoubt.cli.output import Output, printable
from undoubt.report.times import iso

FOREIGN = "evil\x1b[2J\r\n\u202egid"


def test_moments_are_iso_8601_in_utc() -> None:
    assert iso(0) == "1970-01-01T00:00:00.000Z"
    assert iso(1_767_225_600.25) == "2026-01-01T00:00:00.250Z"
    assert iso(None) is None


def test_plain_tables_are_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """A gid that is cut cannot be pasted into the next command."""
    Output().table(("a", "gid"), [(1, "x" * 200), ("long one", None)])
    assert capsys.readouterr().out.splitlines() == ["A         GID", "1         " + "x" * 200, "long one"]


def test_control_characters_of_a_catalog_never_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Anybody who may PREPARE can choose a gid; printed raw it could clear the screen or hide a line."""
    out = Output()
    out.table(("gid",), [(FOREIGN,)])
    out.note(f"foreign {FOREIGN!s}".replace("\n", " "))
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert not {"\x1b", "\r", "\u202e"} & set(text)
        assert "evil\\x1b[2J" in text
    assert printable("plain text, ünïcode") == "plain text, ünïcode"


def test_names_that_differ_look_different(capsys: pytest.CaptureFixture[str]) -> None:
    """Broken if the name of a prepared transaction looks like another one, which an operator then ends."""
    Output().table(
        ("gid", "owner"), [("a b", "x"), ("a  b", "x"), (" a b", "x"), ("a b ", "x"), ("a\nb", "x")]
    )
    shown = capsys.readouterr().out.splitlines()[1:]
    assert [line.removesuffix("x").rstrip() for line in shown] == [
        "a b", "a \\x20b", "\\x20a b", "a b\\x20", "a\\nb"
    ]  # fmt: skip
    for unseen in ("\u3164", "\u2800", "\u034f", "\ufe0f", "\u115f", "\uffa0", "\U000e0101"):
        assert printable(f"a{unseen}b") == f"a{ascii(unseen)[1:-1]}b"
    assert printable("  indented") == "  indented"


def test_json_keeps_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    """There the gid must come back exactly, and JSON escapes control characters by itself."""
    Output("json").document([{"gid": FOREIGN, "none": None}])
    text = capsys.readouterr().out
    assert json.loads(text) == [{"gid": FOREIGN, "none": None}]
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("tty", "env", "styled"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colour_only_on_a_terminal_that_wants_it(
    monkeypatch: pytest.MonkeyPatch, tty: bool, env: dict[str, str], styled: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty)
    assert output.styled() is styled


def test_a_styled_table_shows_markup_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A participant's text like [red] must not be taken for rich's markup and vanish."""
    monkeypatch.setattr(output, "styled", lambda: True)
    Output().table(("gid",), [("[red]gid[/red]",), (FOREIGN,)])
    shown = capsys.readouterr().out
    assert "[red]gid[/red]" in shown
    assert "\x1b[2J" not in shown
