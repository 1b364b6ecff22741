"""The first thing that a newcomer sees: it must prove what it says, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.undoubt.test_embedded import commands, processes
from undoubt.demo import bank, worker
from undoubt.demo.proof import Proof
from undoubt.demo.show import Show
from undoubt.demo.stage import stage
from undoubt.demo.story import Story
from undoubt.demo.workers import Reported, WorkerFailed, working

KEYS = {
    "ok", "transactions", "committed", "aborted", "acknowledged_lost", "in_doubt_after_crash",
    "in_doubt_after_recovery", "money_before", "money_after", "kills", "resolved",
}  # fmt: skip


async def start(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    """The command, in a folder that is not the project's, with temporary files of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "undoubt", "demo", *arguments,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=folder, env={**os.environ, "TMPDIR": str(folder)}, start_new_session=True,
    )  # fmt: skip


def left_of(folder: Path) -> list[str]:
    """Files and processes that name the folder."""
    return [str(path) for path in folder.iterdir()] + [line for line in commands() if str(folder) in line]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Open to the servers' user, and short enough for a socket's address. What fails leaves no server."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for pid, line in processes():
        if str(folder) in line:
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)


@pytest.mark.parametrize("ledger", ["raft", "sqlite"])
async def test_it_proves_what_it_says_and_leaves_nothing(short_folder: Path, ledger: str) -> None:
    """Scripts and CI read this object; an exit of 0 with less than this proved nothing."""
    process = await start(short_folder, "--seconds", "4", "--ledger", ledger, "--output", "json")
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    told = json.loads(out)
    assert set(told) == KEYS
    assert told["ok"] is True
    assert told["acknowledged_lost"] == told["in_doubt_after_recovery"] == 0
    assert told["money_before"] == told["money_after"] == 2 * bank.ACCOUNTS * bank.BALANCE
    kills = {"coordinator_before_decision", "coordinator_after_decision", "database"}
    assert set(told["kills"]) == (kills | {"leader"} if ledger == "raft" else kills)
    assert min(told["kills"].values()) >= 1
    assert told["transactions"] == told["committed"] + told["aborted"]
    assert told["aborted"] >= 1
    assert told["resolved"]["committed"] >= 2, "both branches of what was decided when its coordinator died"
    assert told["resolved"]["rolled_back"] >= 2, "both branches of what was not"
    assert told["in_doubt_after_crash"] == sum(told["resolved"].values())
    assert b"explain, for a branch that is aborted" in err
    assert b"explain, for a branch that is committed" in err
    assert err.count(b"waits for it (backend") >= 2, "both explanations show a session that is blocked"
    assert left_of(short_folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_leaves_nothing(short_folder: Path, number: signal.Signals) -> None:
    """Ctrl-C in the middle must not leave servers, workers or folders."""
    process = await start(short_folder, "--seconds", "600")
    assert process.stderr is not None
    async for line in process.stderr:
        if b"Transfers between" in line:
            break
    assert any(worker.__name__ not in line and str(short_folder) in line for line in commands()), "no server"
    process.send_signal(number)
    _, err = await process.communicate()
    assert process.returncode == 130, err.decode()
    assert b"interrupted" in err
    assert b"Traceback" not in err
    assert left_of(short_folder) == []


async def test_a_killed_demo_leaves_no_process(short_folder: Path) -> None:
    """Nobody can clean up after SIGKILL, but nothing may go on running."""
    process = await start(short_folder, "--seconds", "600")
    assert process.stderr is not None
    async for line in process.stderr:
        if b"Transfers between" in line:
            break
    process.kill()
    await process.communicate()
    async with asyncio.timeout(30):
        while any(str(short_folder) in line for line in commands()):
            await asyncio.sleep(0.05)


async def test_what_is_kept_goes_on_and_its_commands_work(short_folder: Path) -> None:
    """``--keep`` is for trying things: each command that it prints must do what it says, the last one too."""
    process = await start(short_folder, "--seconds", "2", "--keep", "--output", "json")
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert json.loads(out)["ok"]
    lines = err.decode().partition("Try next")[2].splitlines()
    tries = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    crash = next(line for line in tries if "undoubt.demo.worker" in line)
    listing = next(line for line in tries if "indoubt list" in line)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def shell(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            shell=True,
            cwd=short_folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert shell(crash).returncode == 128 + signal.SIGKILL
    assert "undoubt:" in shell(listing).stdout
    for command in tries:
        if "undoubt" in command and command not in {crash, tries[-1]}:
            assert (ran := shell(command)).returncode == 0, ran.stderr
    assert shell(tries[-1]).returncode == 0
    async with asyncio.timeout(30):
        while left_of(short_folder):
            await asyncio.sleep(0.05)


async def test_a_lost_transfer_is_not_proved_away() -> None:
    """A demo that always says ok is worth nothing: with an acknowledged transfer gone it must not."""
    async with stage(keep=False) as built:
        story = Story(built, Show(), 2)
        reported: Reported = story._reported
        reported.begun |= {"x", "y"}
        reported.acknowledged |= {"x"}
        story.proof.money_before = (await bank.audit(built.dsns)).money
        await story._audit()
    proof: Proof = story.proof
    assert not proof.ok
    assert proof.acknowledged_lost == 1
    assert proof.transactions == 2


async def test_a_worker_that_ends_otherwise_fails_the_story() -> None:
    """A "kill" that did not happen must not be counted."""
    async with stage(keep=False) as built, working(built.config, Reported(), seconds=0.2, tag=0) as child:
        with pytest.raises(WorkerFailed, match="status 0 at None, not by SIGKILL at before_decide"):
            await child.killed_at("before_decide", 5)
