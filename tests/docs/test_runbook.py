"""The runbook is complete; that its commands work is proved by ``make prove PROOF=runbook``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.docs.pages import ROOT
from tests.docs.test_pages import anchors, parsed
from tests.prove.runbook import PLANTED, SCENES, planted
from tests.prove.runbook.page import PAGE, Command, differs, sections

RULES = ROOT / "deploy/prometheus/undoubt.rules.yaml"
FIRST = "When the alarm wakes you"
PARTS = ("**You notice** ", "**It means** ", "**Do**", "**It worked if** ", "**Do not** ")
OURS = re.compile(r"(?<![\w/-])undoubt ((?:\"[^\"]*\"|\$\((?:[^()]|\([^)]*\))*\)|[^|;>)\"])+)")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def commands() -> list[Command]:
    return [command for blocks in sections().values() for block in blocks for command in block.commands]


def of_undoubt(text: str) -> list[str]:
    """The commands of undoubt in a line of the shell, or of an alert."""
    return [found[1].strip() for found in OURS.finditer(text)]


def test_every_section_has_a_scene() -> None:
    """Broken if commands of the page are run by no proof."""
    assert {heading for heading, blocks in sections().items() if blocks} == set(SCENES)
    assert len(commands()) >= 40
    assert sum(len(of_undoubt(command.text)) for command in commands()) >= 40


def test_every_section_has_all_its_parts() -> None:
    """Broken if a section does not say how its case is noticed, what it is, what to do, when that has
    worked, and what not to do."""
    texts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    assert texts.pop(FIRST)
    assert {
        heading: [part for part in PARTS if f"\n{part}" not in text] for heading, text in texts.items()
    } == {heading: [] for heading in texts}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_names_a_section_that_names_the_alert(alert: dict[str, Any]) -> None:
    """Broken if the operator whom an alert wakes is not led to the commands."""
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert ROOT / page == PAGE
    assert anchor in anchors(PAGE)
    [text] = [
        text
        for text in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
        if text.partition("\n")[0].lower().replace(" ", "-") == anchor
    ]
    assert f"`{alert['alert']}`" in text


def test_commands_of_alerts_exist() -> None:
    """Broken if an alert tells its reader to run what is refused."""
    told = " ".join(alert["annotations"]["description"] for alert in alerts())
    found = re.findall(r"undoubt ((?:indoubt|tx|cluster|doctor)[\w -]*(?: GID| ID)?)", told)
    assert len(found) >= 5
    for words in found:
        known = re.split(r" (?:says|tells|shows|has|which)\b", words)[0].replace(
            " ID", " 3-4f1d0c9a77b2e815.42"
        )
        assert parsed(known) is not None


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.text[:60])
def test_commands_of_the_page_exist(command: Command) -> None:
    """Broken if a command that is copied from the page is none, or has no such flag."""
    for words in of_undoubt(command.text):
        assert parsed(words.replace('"$GID"', "GID").replace('"$TXID"', "TXID")) is not None


def test_an_unknown_command_is_seen() -> None:
    with pytest.raises(click.UsageError):
        parsed("indoubt list --oldest")


def test_wrong_commands_are_planted(tmp_path: Path) -> None:
    """Broken if the control of the proof runs the page as it is."""
    right, wrong = sections(), sections(planted(tmp_path))
    for heading in right:
        assert (right[heading] != wrong[heading]) is (heading in PLANTED)


@pytest.mark.parametrize(
    ("printed", "said", "same"),
    [
        ("a b", "a   b\n", True),
        ("a b", "a c", False),
        ("a", "a\nb", False),
        ("a\nb", "a", False),
        ("a...z", "a b z", True),
        ("...\nz", "a\nb\nz", True),
        ("a\n...\nz", "a\nz", True),
        ("a\n...\nz", "a\nb", False),
        ("a\n...", "a\nb\nc", True),
    ],
)
def test_what_is_printed_is_compared(printed: str, said: str, *, same: bool) -> None:
    """Broken if the proof takes any output for that of the page, or the right one for another."""
    assert (differs(printed, said) is None) is same
