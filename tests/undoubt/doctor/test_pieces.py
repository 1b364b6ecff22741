"""What doctor makes of settings, of the ledger's state and of what is prepared, without a server."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.coordinator.ledger.signing import TaggingLedger
from tests.undoubt.cli.stage import LEDGER_ID, NONCE, Stage, aged
from undoubt.config import Settings, load
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.contract import BranchRecord, Heuristic, Verdict
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.doctor import examine
from undoubt.doctor.configuration import look_at_configuration
from undoubt.doctor.ledger import file_system, look_at_ledger
from undoubt.doctor.orphans import SHOWN_MAX
from undoubt.participants.contract import Decision, Settled, Waiting
from undoubt.participants.findings import Finding, Severity
from undoubt.participants.ids import Foreign, Gid, Protocol, TxId

GIB = 2**30


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Stage:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "undoubt.toml").write_text(
        '[ledger]\nurl = "memory://"\n'
        '[participants.orders]\ndsn = "postgresql://x/x"\n[participants.payments]\ndsn = "postgresql://x/y"\n'
    )
    return Stage(monkeypatch, capsys)


def settings(folder: Path, text: str, mode: int = 0o600) -> Settings:
    file = folder / "undoubt.toml"
    file.write_text(text)
    file.chmod(mode)
    return load(file, env={})


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_nobody_is_configured(tmp_path: Path) -> None:
    found = by_check(look_at_configuration(settings(tmp_path, "")))
    assert found["configuration"].severity is Severity.WARNING
    assert found["configuration"].fix is not None
    fixed = settings(tmp_path, found["configuration"].fix)
    assert by_check(look_at_configuration(fixed))["configuration"].severity is Severity.OK


@pytest.mark.parametrize(
    ("days", "severity"),
    [
        (0.5, Severity.WARNING),
        (1, Severity.OK),
        (7, Severity.OK),
        (366, Severity.OK),
        (400, Severity.WARNING),
    ],
)
def test_retention(tmp_path: Path, days: float, severity: Severity) -> None:
    """Too short, and a restored database's branches are forgotten; too long, and the ledger only grows."""
    read = settings(tmp_path, f"[ledger]\nretention_s = {days * 86_400}")
    assert by_check(look_at_configuration(read))["retention"].severity is severity


@pytest.mark.parametrize(("mode", "severity"), [(0o600, Severity.OK), (0o644, Severity.WARNING)])
def test_passwords_that_others_can_read(tmp_path: Path, mode: int, severity: Severity) -> None:
    read = settings(tmp_path, '[participants.orders]\ndsn = "postgresql://app:s3cret@h/orders"', mode)
    found = by_check(look_at_configuration(read))["secrets"]
    assert found.severity is severity
    assert "s3cret" not in str(found)
    assert found.fix == (None if severity is Severity.OK else f"chmod 600 {tmp_path}/undoubt.toml")


def test_without_a_password_a_readable_file_is_fine(tmp_path: Path) -> None:
    read = settings(tmp_path, '[participants.orders]\ndsn = "postgresql://app@h/orders"', 0o644)
    assert "secrets" not in by_check(look_at_configuration(read))


@pytest.mark.parametrize(
    ("free_bytes", "severity"),
    [(20 * GIB, Severity.OK), (GIB // 2, Severity.WARNING), (GIB // 20, Severity.PROBLEM)],
)
async def test_room_for_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, severity: Severity
) -> None:
    """A ledger without room decides nothing. (A disk that is really full cannot be had here.)"""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
    read = settings(tmp_path, "")
    found = by_check(await look_at_ledger(MemoryLedger(LEDGER_ID), read, 300.0))
    assert found["ledger_disk"].severity is severity


def test_file_systems_of_other_machines() -> None:
    """A lock that is not one: two owners. Longest mount point first; a blank in one is written \\040."""
    shop = "/srv/my\\040shop"
    mounts = f"/dev/sda1 / ext4 rw 0 0\nnas:/x {shop} nfs4 rw 0 0\ntmpfs {shop}/t tmpfs rw 0 0\n"
    assert file_system(Path("/var/lib/undoubt.db"), mounts) == "ext4"
    assert file_system(Path("/srv/my shop/undoubt.db"), mounts) == "nfs4"
    assert file_system(Path("/srv/my shop/t/undoubt.db"), mounts) == "tmpfs"
    assert file_system(Path("/srv/my shopping/undoubt.db"), mounts) == "ext4"
    assert file_system(Path("/var/lib/undoubt.db")) != "", "this machine's own"


async def test_a_ledger_on_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undoubt.doctor.ledger.file_system", lambda _: "nfs4")
    found = by_check(await look_at_ledger(MemoryLedger(LEDGER_ID), settings(tmp_path, ""), 300.0))
    assert found["ledger_file_system"].severity is Severity.PROBLEM


async def test_a_ledger_of_a_newer_version(tmp_path: Path) -> None:
    """Broken if an old doctor looks into it all the same, or says nothing of the way out."""
    read = settings(tmp_path, "")
    await (await open_ledger(read.ledger, create=True)).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "undoubt.db")) as database:
        database.execute("update alembic_version set version_num = '9999'")
        database.commit()
    [found] = [one for one in await examine(read, older_than_s=300.0) if one.check == "ledger"]
    assert found.severity is Severity.PROBLEM
    assert "upgrade undoubt" in found.what


async def test_decisions_that_wait(tmp_path: Path) -> None:
    """Broken if a database that was taken out of the configuration keeps a decision open for ever, unseen."""
    ledger = TaggingLedger(LEDGER_ID)
    session = await ledger.open_session("shop", 10.0)
    read = settings(tmp_path, '[participants.orders]\ndsn = "postgresql://x/x"')
    await ledger.decide(
        session.txid(1), Decision.COMMIT, [BranchRecord(1, "orders"), BranchRecord(2, "stock")]
    )
    found = [one for one in await look_at_ledger(ledger, read, 300.0) if one.check == "unfinished"]
    assert [one.severity for one in found] == [Severity.PROBLEM, Severity.OK]
    assert found[0].what == "1 decision has a branch in participant 'stock', which is not configured here"
    assert found[1].what == "1 decision is not yet known to be applied everywhere; old: 0"
    found = [one for one in await look_at_ledger(ledger, read, 0.0) if one.check == "unfinished"]
    assert found[1].fix == "undoubt recover --once"


async def test_heuristic_outcomes_are_open(tmp_path: Path) -> None:
    ledger = MemoryLedger(LEDGER_ID)
    gid = Gid(LEDGER_ID, Protocol.TWO_PHASE, TxId(1, NONCE, 1), 1, "orders")
    await ledger.record_heuristic(Heuristic(gid, Settled.HEURISTIC_HAZARD, Decision.COMMIT, 0.0))
    found = by_check(await look_at_ledger(ledger, settings(tmp_path, ""), 300.0))["heuristics"]
    assert (found.severity, found.fix) == (Severity.PROBLEM, "undoubt indoubt list")
    assert found.what == "1 branch ended otherwise than decided, or may have"
    await ledger.forget_heuristic(gid)
    found = by_check(await look_at_ledger(ledger, settings(tmp_path, ""), 300.0))["heuristics"]
    assert found.severity is Severity.OK


STANDINGS = [
    (Decision.COMMIT, "problem", "undoubt recover --once"),
    (Decision.ABORT, "problem", "undoubt recover --once"),
    (Verdict.ASK_PROTOCOL, "problem", "undoubt recover --once"),
    (Verdict.ACTIVE, "warning", "undoubt indoubt explain {gid}"),
    (Verdict.FORGOTTEN, "problem", "undoubt indoubt explain {gid}"),
    (Verdict.IMPOSTOR, "problem", "undoubt indoubt explain {gid}"),
]


@pytest.mark.parametrize(("stands", "severity", "fix"), STANDINGS)
def test_what_to_do_about_a_branch(stage: Stage, stands: Verdict | Decision, severity: str, fix: str) -> None:
    """Broken if a line ends a branch whose coordinator may still commit it, or that nobody can judge."""
    gid, _ = stage.prepare(1, stands)
    aged(stage, gid, 7_200.0)
    holder = f"orders/{gid}" if stands is Verdict.IMPOSTOR else str(gid.txid)
    stage.orders.waiting.append(Waiting("orders/4711", holder, "1", 4711, None))
    found = [one for one in stage.json("participants", "check")["findings"] if one["check"] == "prepared"]
    assert [one["participant"] for one in found] == ["orders", "payments"]
    assert (found[0]["severity"], found[0]["fix"]) == (severity, fix.format(gid=gid))
    assert "prepared for 2h 00m" in found[0]["what"]
    assert "waiting for it: orders/4711 (backend 4711)" in found[0]["why"]
    # The other one is young; what only a person can end is shown all the same.
    assert found[1]["severity"] == ("problem" if stands is Verdict.FORGOTTEN else "ok")


def test_a_foreign_name_can_neither_lie_nor_run(stage: Stage) -> None:
    """It goes into a line that people paste into a shell, and onto a terminal."""
    stage.foreign(Foreign("x'; rm -rf / #\x1b[2J"), 7_200.0)
    ran = stage.run("participants", "check")
    assert "\x1b" not in ran.out
    fix = stage.json("participants", "check", "orders")["findings"][-1]["fix"]
    assert fix == "undoubt indoubt explain 'x'\"'\"'; rm -rf / #\x1b[2J'"


def test_thousands_are_not_listed_one_by_one(stage: Stage) -> None:
    for number in range(SHOWN_MAX + 5):
        stage.foreign(Foreign(f"old {number}"), 7_200.0)
    found = [
        one for one in stage.json("participants", "check", "orders")["findings"] if one["check"] == "prepared"
    ]
    assert len(found) == SHOWN_MAX + 1
    assert found[-1]["what"] == "5 more, the oldest of them for 2h 00m"


def test_warnings_alone_are_no_failure(stage: Stage) -> None:
    """Exit status 1 is for what needs a hand: a monitor that calls people must not cry wolf."""
    stage.orders.findings.append(Finding("orders", "pooler", Severity.WARNING, "one in the way", "why", "do"))
    ran = stage.run("participants", "check")
    assert (ran.status, ran.err) == (0, "no problems; warnings: 1\n")
    assert "    do" in ran.out.splitlines()
    stage.orders.findings.append(Finding("orders", "roles", Severity.PROBLEM, "bad", "", None))
    ran = stage.run("participants", "check")
    assert ran.status == 1
    assert ran.err == "undoubt: problems: 1; no answer: 0; warnings: 1\n"


def test_the_configuration_cannot_be_read(stage: Stage, tmp_path: Path) -> None:
    """Nothing can be looked at then: usage, as for every command."""
    (tmp_path / "undoubt.toml").write_text("[ledger]\nurll = 1")
    ran = stage.run("doctor")
    assert ran.status == 2
    assert "did you mean ledger.url?" in ran.err
