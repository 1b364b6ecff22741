"""A short run, and what a long one rests on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import __main__ as faults
from tests.faults.holders import Grant, Holders
from tests.faults.schedule import SIGNALS, Kind, schedule
from tests.faults.told import Told
from tests.linearizability.check import violations
from tests.undoubt.cli.harness import REPOSITORY

COMMAND = (sys.executable, "-m", "tests.faults")
ON_DISK = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
"""It mounts a filesystem of its own over the one in memory, where the tests' temporary files are."""


def test_a_seed_gives_one_schedule() -> None:
    """A failure could not be looked for again."""
    assert schedule(7, 60.0, list(Kind)) == schedule(7, 60.0, frozenset(Kind))
    assert schedule(7, 60.0, list(Kind)) != schedule(8, 60.0, list(Kind))


@pytest.mark.parametrize("seconds", [10.0, 60.0, 600.0])
def test_a_schedule_leaves_no_kind_out(seconds: float) -> None:
    """A fault that never comes proves nothing, in a short run either."""
    for seed in range(20):
        planned = schedule(seed, seconds, list(Kind))
        assert {fault.kind for fault in planned} == set(Kind)
        assert all(0 < fault.at_s < seconds for fault in planned)
        assert len(planned) >= seconds / 3
        assert {fault.kind for fault in schedule(seed, seconds, SIGNALS)} == SIGNALS


def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs it the first time must not have to guess."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(faults, "SBIN", "")
    monkeypatch.setattr(faults, "faketime_library", lambda: None)
    [reason] = faults.missing()
    assert "apt-get install e2fsprogs faketime iproute2 mount nftables util-linux" in reason


def test_only_root_is_told_to_come_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fail halfway, with a message of some other program."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    [reason] = faults.missing()
    assert "only root" in reason
    assert "--signals-only" in reason


def test_what_was_told_is_what_is_judged(tmp_path: Path) -> None:
    """A line lost in reading on would lose an acknowledgement, or an answer; one cut short by a SIGKILL was
    never told."""
    lines = [
        {"begun": "a", "txid": "1-abc.1"},
        {"asked": 1, "who": "x", "what": "decide", "at": 1.0, "of": DECIDE},
        {"answered": 1, "at": 2.0, "result": "commit", "session": 1},
        {"acknowledged": "a", "at": 3.0},
        {"asked": 2, "who": "y", "what": "outcome", "at": 4.0, "of": {"session": 1, "seq": 1}},
        {"answered": 2, "at": 5.0, "result": "active", "session": 1},
        {"acknowledged": "cut short", "at": 6.0},
    ]
    text = "\n".join(json.dumps(line) for line in lines)[:-5]
    told, path = Told(), tmp_path / "told-x"
    for end in range(0, len(text), 7):
        path.write_text(text[: end + 7])
        told.read([path])
    assert told.begun == {"a": "1-abc.1"}
    assert told.acknowledged == {"a": 3.0}
    assert told.longest_stall_s(0.0, 10.0) == 7.0
    [problem] = violations(told.history)  # active, after its commit was answered
    assert "transaction 1.1" in problem


def holders(*grants: tuple[int, bool, float, float], certain: tuple[tuple[int, float], ...] = ()) -> Holders:
    """Of one lock: token, whether it is shared, when it was asked for and told; token and moment."""
    return Holders(
        [Grant("job", *grant) for grant in grants], [("job", token, moment) for token, moment in certain]
    )


def test_a_lock_of_two_is_seen() -> None:
    """Broken if a ledger may give a lock away while its holder is certain of it, unseen."""
    one, other = (1, False, 0.0, 1.0), (2, False, 0.5, 2.0)
    assert holders(one, other, certain=((1, 1.5), (2, 2.5))).held_twice() == []
    [wrong] = holders(one, other, certain=((1, 1.5), (1, 2.5))).held_twice()
    assert "held with token 1 after it was granted with 2" in wrong
    both = ((1, True, 0.0, 1.0), (2, True, 0.5, 2.0))
    assert holders(*both, certain=((1, 2.5), (2, 2.5))).held_twice() == []
    assert len(holders(both[0], other, certain=((1, 2.5),)).held_twice()) == 1
    assert len(holders(one, both[1], certain=((1, 2.5),)).held_twice()) == 1


def test_tokens_that_do_not_increase_are_seen() -> None:
    """Those that were asked for at one time may come in any order."""
    assert holders((2, False, 0.0, 2.0), (1, False, 1.0, 3.0)).out_of_order() == []
    assert len(holders((2, False, 0.0, 2.0), (1, False, 2.5, 3.0)).out_of_order()) == 1
    assert len(holders((2, False, 0.0, 2.0), (2, False, 1.0, 3.0)).out_of_order()) == 1


DECIDE = {"session": 1, "seq": 1, "asked": "commit", "protocol": "2"}


def choice() -> tuple[str, ...]:
    """All faults where there can be all, else the signals, which CI must not be content with."""
    reasons = faults.missing()
    assert not reasons or os.environ.get("CI") != "true", reasons
    return ("--signals-only",) if reasons else ()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("protocol", ["2pc", "paxos"])
async def test_a_short_run(protocol: str) -> None:
    """Broken if a fault of real machines splits a transaction, loses one, leaves one in doubt, or makes the
    ledger answer what no ledger could."""
    options = ("--seconds", "20", "--seed", "1", "--protocol", protocol, *choice())
    ended = await asyncio.to_thread(
        subprocess.run, [*COMMAND, *options], cwd=REPOSITORY, env=ON_DISK, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, (ended.stdout, ended.stderr[-4000:])
    [line] = ended.stdout.splitlines()
    told = json.loads(line)
    assert (told["ok"], told["failures"]) == (True, [])
    assert (told["acknowledged_lost"], told["half_applied"], told["in_doubt_after_heal"]) == (0, 0, 0)
    assert told["linearizable"] is True
    assert (told["locks_held_twice"], told["tokens_out_of_order"]) == (0, 0)
    assert min(told["faults"].values()) >= 1
    assert set(told["faults"]) | set(told["left_out"]) == set(Kind)
    assert told["acknowledged"] >= 40


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
async def test_nothing_is_left_of_a_run_that_is_ended(how: signal.Signals) -> None:
    """Servers, namespaces and mounts would pile up on the machine of whoever interrupts it. What a SIGKILL
    leaves ends by itself, but for files: those the next run removes."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "--seconds", "600", "--seed", "1", *choice(),
        cwd=REPOSITORY, env=ON_DISK, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    said = b""
    while b": over\n" not in said:  # a fault has come and gone: everything runs
        line = await process.stderr.readline()
        assert line, said
        said += line
    folder = Path(said.splitlines()[0].decode().rpartition(" in ")[2])
    assert list(working_in(folder))
    process.send_signal(how)
    rest = asyncio.create_task(process.stderr.read())
    status = await process.wait()
    assert status == (-how if how is signal.SIGKILL else 130), (await rest)[-3000:]
    while list(working_in(folder)):
        await asyncio.sleep(0.05)
        if how is signal.SIGKILL:
            faults.sweep_left(folder.parent)
    await rest
    faults.sweep_left(folder.parent)
    assert not folder.exists()
    assert str(folder) not in Path("/proc/mounts").read_text()


def working_in(folder: Path) -> Iterator[int]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")).is_relative_to(folder):
                yield int(process.name)
        except OSError:
            continue
