"""The alerts: promtool parses them, and runs the tests beside them, which must be about every alert."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from tests.prove import deploy
from tests.prove.deploy.planted import Fault, judged

RULES, TESTS = "prometheus/undoubt.rules.yaml", "prometheus/undoubt.tests.yaml"
FAULTS = (
    Fault(
        RULES,
        "undoubt_in_doubt_oldest_age_seconds) > 300",
        "undoubt_in_doubt_oldest_age_seconds) > 3000",
        "UndoubtBranchInDoubt",
    ),
    Fault(RULES, "sum(undoubt_node_leads) == 0", "sum(undoubt_node_leads == 0", "promtool check rules"),
    Fault(
        RULES,
        "alert: UndoubtLedgerFailing",
        "alert: UndoubtLedgerFails",
        "no test makes UndoubtLedgerFails fire",
    ),
)


def why_not() -> str | None:
    return None if shutil.which("promtool") else "promtool is not installed: apt install prometheus"


async def main() -> list[str]:
    return await judged(find, FAULTS)


async def find(place: Path) -> list[str]:
    """What is wrong with the alerts."""
    found = []
    for command in (("check", "rules", RULES), ("test", "rules", TESTS)):
        status, told = await deploy.run("promtool", *command, cwd=place)
        if status:
            found.append(f"promtool {' '.join(command)}: {told.strip()}")
    named = {
        rule["alert"]
        for group in yaml.safe_load((place / RULES).read_text())["groups"]
        for rule in group["rules"]
    }
    fired = {
        case["alertname"]
        for test in yaml.safe_load((place / TESTS).read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    return found + [f"no test makes {name} fire" for name in sorted(named - fired)]
