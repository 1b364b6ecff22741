"""``undoubt recover`` and ``undoubt ledger``: recovery by hand, and a ledger's upkeep."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.undoubt.cli.harness import COMMAND, environment, undoubt
from tests.undoubt.cli.stage import Stage
from undoubt.coordinator.ledger.contract import Verdict
from undoubt.participants.contract import Decision, XactStatus
from undoubt.participants.errors import ParticipantRefused, ParticipantUnavailable


def test_once_resolves_what_is_decided_and_tells_of_each_branch(stage: Stage) -> None:
    committed, aborted = stage.prepare(1, Decision.COMMIT)[0], stage.prepare(2, Verdict.ABORTED)[0]
    active = stage.prepare(3, Verdict.ACTIVE)[0]
    report = stage.json("recover", "--once")
    told = {line["gid"]: (line["action"], line["result"]) for line in report["lines"]}
    assert told[str(committed)] == ("commit", "done")
    assert told[str(aborted)] == ("rollback", "done")
    assert told[str(active)] == ("wait", "nothing")
    assert report["finished"] == [str(committed.txid)]
    assert (stage.orders.xact_status(committed), stage.orders.xact_status(aborted)) == (
        XactStatus.COMMITTED,
        XactStatus.ABORTED,
    )
    assert list(stage.orders.prepared) == [active]
    (act,) = stage.json("audit")
    assert (act["verb"], act["result"]) == ("recover --once", "commit: 2, rollback: 2")
    stage.json("recover", "--once")
    assert len(stage.json("audit")) == 1, "what finds nothing every minute would push out all the rest"


def test_dry_run_does_nothing(stage: Stage) -> None:
    """An operator tries it first, on the production databases."""
    gid, _ = stage.prepare(1, Decision.COMMIT)
    ran = stage.run("recover", "--dry-run")
    assert ran.status == 0
    assert "would do" in ran.out
    assert str(gid) in ran.out
    assert gid in stage.orders.prepared
    report = stage.json("recover", "--dry-run", "--once")
    assert report["dry_run"] is True
    assert gid in stage.orders.prepared


def test_a_participant_that_is_down_exits_4_and_the_others_are_recovered(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Decision.COMMIT)
    stage.payments.down = ParticipantUnavailable("payments", "connection refused")
    ran = stage.run("recover", "--once")
    assert ran.status == 4
    assert "connection refused" in ran.err
    assert f"commit of {gid.txid} waits for payments" in ran.out
    assert stage.orders.xact_status(gid) is XactStatus.COMMITTED


def test_a_branch_that_may_not_be_finished_exits_1(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Decision.COMMIT)
    stage.orders.script.commit = [ParticipantRefused("orders", "must be owner", sqlstate="42501")]
    ran = stage.run("recover", "--once")
    assert ran.status == 1
    assert "must be owner" in ran.err
    assert gid in stage.orders.prepared


def test_nothing_to_do_says_so(stage: Stage) -> None:
    ran = stage.run("recover", "--once")
    assert (ran.status, ran.out) == (0, "")
    assert "nothing" in ran.err


def test_without_once_it_stays_until_told_to_end(tmp_path: Path) -> None:
    """As a service unit it must end cleanly on SIGTERM, leaving the ledger to others."""
    (tmp_path / "undoubt.toml").write_text('[ledger]\nurl = "sqlite:///ledger.db"\n')
    assert undoubt("ledger", "init", cwd=tmp_path).status == 0
    process = subprocess.Popen(
        [*COMMAND, "recover"], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process:
        assert "recovering" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert undoubt("ledger", "check", cwd=tmp_path).status == 0


# ------------------------------------------------------------------------------------------ ledger


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "undoubt.toml").write_text('[ledger]\nurl = "sqlite:///ledger.db"\n')
    return tmp_path


def test_init_creates_once_and_shows_what_is_there(home: Path) -> None:
    first = undoubt("ledger", "init", "-o", "json", cwd=home)
    assert first.status == 0
    assert first.json["backend"] == "sqlite"
    assert os.path.exists(home / "ledger.db")
    again = undoubt("ledger", "init", "-o", "json", cwd=home)
    assert again.json["ledger_id"] == first.json["ledger_id"]
    assert first.json["ledger_id"] in undoubt("ledger", "init", cwd=home).out


def test_migrate_of_a_current_ledger_applies_nothing(home: Path) -> None:
    assert undoubt("ledger", "init", cwd=home).status == 0
    ran = undoubt("ledger", "migrate", "-o", "json", cwd=home)
    assert (ran.status, ran.json) == (0, {"applied": []})
    assert "up to date" in undoubt("ledger", "migrate", cwd=home).err


def test_check_of_a_healthy_ledger(home: Path) -> None:
    assert undoubt("ledger", "init", cwd=home).status == 0
    ran = undoubt("ledger", "check", "-o", "json", cwd=home)
    assert (ran.status, ran.json) == (0, {"healthy": True, "problems": []})


def test_check_of_a_damaged_ledger_exits_1_and_says_what(home: Path) -> None:
    """A check that never fails is worse than none."""
    assert undoubt("ledger", "init", cwd=home).status == 0
    file = home / "ledger.db"
    data = bytearray(file.read_bytes())
    data[100 : len(data) // 2] = bytes(len(data) // 2 - 100)
    file.write_bytes(data)
    ran = undoubt("ledger", "check", "-o", "json", cwd=home)
    assert ran.status == 1
    assert ran.json["healthy"] is False
    assert ran.json["problems"]
    assert undoubt("ledger", "check", cwd=home).out


@pytest.mark.parametrize(
    "args",
    [
        ("ledger", "check"),
        ("ledger", "migrate"),
        ("indoubt", "list"),
        ("recover", "--once"),
        ("recover",),
        ("tx", "list"),
    ],
)
def test_no_ledger_is_not_found_and_not_created(home: Path, args: tuple[str, ...]) -> None:
    """In the wrong folder an empty ledger would call every branch in doubt another ledger's."""
    ran = undoubt(*args, cwd=home)
    assert (ran.status, ran.out) == (3, "")
    assert "undoubt ledger init" in ran.err
    assert [file.name for file in home.iterdir()] == ["undoubt.toml"]
