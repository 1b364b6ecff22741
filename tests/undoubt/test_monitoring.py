"""What the page on monitoring and the alerts name exists, and the alerts do what they say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from tests.docs.pages import ROOT, blocks
from undoubt.metrics import Metrics, _Restarts

PAGE = ROOT / "docs/monitoring.md"
RULES = ROOT / "deploy/prometheus/undoubt.rules.yaml"


def exposed() -> dict[str, set[str]]:
    """Every metric by the name that a query uses, with its labels."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    families = {family.name: family.type for family in registry.collect()}
    of_this_process = {family.name: family._labelnames for family in _Restarts().collect()}
    labels = {metric._name: metric._labelnames for metric in vars(metrics).values()} | of_this_process
    return {
        name + ("_total" if kind == "counter" else ""): set(labels[name]) for name, kind in families.items()
    }


def of_nodes() -> dict[str, set[str]]:
    """Every metric of a node by name; Prometheus itself adds where it read it."""
    return {
        name: {"instance"} for name in re.findall(r"^\| `(undoubt_node_\w+)`", PAGE.read_text(), re.MULTILINE)
    }


def alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_the_page_has_every_metric_with_its_labels() -> None:
    """Broken if a metric can only be found by reading the code. Those of a node and of a sidecar:
    ``make prove PROOF=deploy``."""
    rows = re.findall(r"^\| `(undoubt_(?!node_|sidecar_)\w+)` \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows} == exposed()


def test_alerts_ask_for_metrics_that_exist() -> None:
    """An alert on a name that nothing has never fires."""
    found = exposed() | of_nodes()
    for alert in alerts():
        names = set(re.findall(r"undoubt_\w+", alert["expr"]))
        assert names, alert
        assert names <= set(found), alert
        labels = {label for name in names for label in found[name]}
        grouped = {label for by in re.findall(r"by \(([^)]*)\)", alert["expr"]) for label in by.split(", ")}
        assert grouped <= labels, alert
        assert set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"]))) <= grouped, alert


def test_the_oldest_branch_in_doubt_has_an_alert() -> None:
    assert "undoubt_in_doubt_oldest_age_seconds" in {
        name for alert in alerts() for name in re.findall(r"undoubt_\w+", alert["expr"])
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Prometheus) is not installed")
def test_prometheus_agrees() -> None:
    """Prometheus' own tool: the expressions parse, and the alerts fire when, and only when, they should."""
    for command in (["check", "rules", RULES.name], ["test", "rules", "undoubt.tests.yaml"]):
        ended = subprocess.run(
            ["promtool", *command], cwd=RULES.parent, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr


PROGRAM = """
import logging
from undoubt.coordinator.errors import TransactionAborted
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import TxId
cause = ParticipantUnavailable("payments", "down")
error = TransactionAborted(TxId(3, "9f2c51d07a6be480", 17), cause)
error.__cause__ = cause
logging.getLogger("shop").warning("order is not paid: %s", error, extra={"order": 7})
"""


def test_the_page_shows_what_a_line_is_like() -> None:
    """Broken if a copied configuration is refused, or gives other fields than the page says."""
    [configuration] = blocks("py", PAGE)
    [line] = blocks("json", PAGE)
    ended = subprocess.run(
        [sys.executable, "-c", configuration.text + PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    written, shown = json.loads(ended.stdout), json.loads(line.text)
    assert written | {"time": None} == shown | {"time": None}
    assert list(written) == list(shown)
