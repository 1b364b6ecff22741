"""What the pages say about commands, keys and files is true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from tests.docs.pages import ROOT, Block, blocks
from undoubt.cli.exits import Exit
from undoubt.cli.root import root
from undoubt.config import load
from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.settings import CoordinatorSettings, LedgerSettings
from undoubt.participants.settings import ParticipantSettings
from undoubt.recovery.settings import RecoverySettings
from undoubt.serve.console.settings import ConsoleSettings
from undoubt.serve.sidecar.settings import SidecarSettings, TokenSettings

ALL = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples/README.md",
    ROOT / "examples/sidecar/README.md",
]


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_configurations_load(block: Block, tmp_path: Path) -> None:
    """A file that is copied from a page must not be refused."""
    (tmp_path / "undoubt.toml").write_text(block.text)
    assert set(load(tmp_path / "undoubt.toml", env={}).participants) == {"orders", "payments"}


COMMANDS = [
    (block, line.removeprefix("$ ")) for block in blocks("console") for line in block.text.splitlines()
]


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=str)
def test_commands_exist(block: Block, line: str) -> None:
    """A command that is copied from a page must be one, with these flags."""
    assert line.startswith("undoubt "), block
    assert parsed(line.removeprefix("undoubt ")) is not None


def parsed(line: str) -> click.Command:
    """The command that ``undoubt line`` is. Raises click's errors if there is none, or none with these
    flags."""
    gid = "undoubt:k3v9q0x2ab:2:3-4f1d0c9a77b2e815.42:1:orders"
    words = [{"GID": gid, "TXID": "3-4f1d0c9a77b2e815.42"}.get(word, word) for word in shlex.split(line)]
    command: click.Command = root
    context = click.Context(command, info_name="undoubt")
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"{line}: no command {name}")
        command, context = found, click.Context(found, parent=context, info_name=name)
    command.make_parser(context).parse_args(list(words))  # raises on an unknown flag
    with command.make_context(words[0] if words else "", list(words), parent=context.parent):
        return command


def documented() -> dict[str, str]:
    rows = re.findall(
        r"^\| `([\w.]+)` \| (?:`(.+?)`)? *\|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE
    )
    return dict(rows)


def fields(prefix: str, kind: type[msgspec.Struct]) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in msgspec.structs.fields(kind):
        default: Any = field.default
        if isinstance(default, msgspec.Struct):
            found |= fields(f"{prefix}.{field.name}", type(default))
            continue
        absent = default is msgspec.NODEFAULT or default is None
        found[f"{prefix}.{field.name}"] = "" if absent else msgspec.json.encode(default).decode()
    return found


def test_every_key_is_documented_with_its_default() -> None:
    """A key that the page lacks is not found by anybody; a wrong default is believed."""
    sections: dict[str, type[msgspec.Struct]] = {
        "ledger": LedgerSettings,
        "coordinator": CoordinatorSettings,
        "recovery": RecoverySettings,
        "node": NodeSettings,
        "sidecar": SidecarSettings,
        "sidecar.tokens": TokenSettings,
        "console": ConsoleSettings,
        "participants.NAME": ParticipantSettings,
    }
    expected: dict[str, str] = {}
    for prefix, kind in sections.items():
        expected |= fields(prefix, kind)
    assert documented() == expected


def test_every_exit_status_is_documented() -> None:
    """Scripts branch on it."""
    table = (ROOT / "docs/operations.md").read_text().partition("## Exit status")[2]
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == [
        int(each) for each in Exit
    ]


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A page that points at nothing sends its reader away."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def anchors(page: Path) -> set[str]:
    """GitHub's of each heading: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_anchors_of_links_are_headings(page: Path) -> None:
    """Broken if a heading was renamed and a link still names the former one."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text())
    missing = [
        f"{path}#{anchor}"
        for path, anchor in links
        if anchor not in anchors((page.parent / path) if path else page)
    ]
    assert missing == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_pages_say_for_whom_they_are(page: Path) -> None:
    """Broken if a reader has to read a page to find out what it is for."""
    title, first, *_ = page.read_text().split("\n\n")
    assert title.startswith("# ")
    assert first.startswith("For ")


def test_every_page_is_listed_in_the_readme() -> None:
    """Broken if a page can only be found by listing the folder."""
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in readme, page.name
