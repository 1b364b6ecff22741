"""``undoubt cluster restore --force``: a cluster goes on from the newest disk that is left."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.coordinator.node.cluster import Cluster, client
from tests.undoubt.cli.harness import Ran, undoubt
from undoubt.coordinator.ledger.contract import BranchRecord, Verdict
from undoubt.coordinator.node.storage.contract import StorageDamaged
from undoubt.coordinator.node.storage.node_storage import NodeStorage
from undoubt.coordinator.node.storage.segment import numbers_in, path_of
from undoubt.coordinator.node.storage.segment_log import ANCHOR_NAME
from undoubt.participants.contract import Decision

COMMIT = Decision.COMMIT
BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))


def configured(folder: Path, cluster: Cluster, number: int) -> Path:
    file = folder / f"node-{number}.toml"
    file.write_text(
        f'[ledger]\nurl = "{cluster.settings.url}"\n[node]\nnumber = {number}\n'
        f'data = "{cluster.place(number)}"\n'
    )
    return file


async def restore(file: Path, *arguments: str) -> Ran:
    return await asyncio.to_thread(
        undoubt, "cluster", "restore", "--config", str(file), "-o", "json", *arguments
    )


async def test_the_newest_disk_that_is_left_is_gone_on_from(tmp_path: Path) -> None:
    """Two of three disks are burned. What is on the third is kept; what may be lost is said, and what was
    undecided is nobody's to presume."""
    for place in ("old", "new"):
        (tmp_path / place).mkdir()
    old = Cluster(tmp_path / "old", 3)
    await old.start()
    async with client(old) as ledger:
        session = await ledger.open_session("test", 60.0)
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        decided, undecided = (ledger.gid(session.txid(seq)) for seq in (1, 2))
        await old.settled()
        behind = next(number for number in (1, 2) if not old.nodes[number].leads)
        await old.stop(behind)
        await ledger.decide(session.txid(3), COMMIT, BRANCHES)
        await old.settled()
        last = max(node.replica.raft.last_index for node in old.nodes.values())
    await old.stop()
    older = shutil.copytree(old.place(1), tmp_path / "older")
    new = Cluster(tmp_path / "new", 3)
    for number in new.addresses:
        shutil.rmtree(new.place(number))
    files = {number: configured(tmp_path, new, number) for number in new.addresses}

    asked = await restore(files[1], "--force", str(old.place(3)))
    assert asked.status == 2
    assert f"its log ends at entry {last}" in asked.err
    assert "1 of 3 voters' disks are given" in asked.err
    assert "on no remaining disk, are lost" in asked.err
    both = await restore(files[1], "--force", str(old.place(behind)), str(old.place(3)))
    assert f"The newest disk is {old.place(3)}, of node 3" in both.err
    assert "Every acknowledged decision is on one of these disks" in both.err
    twice = await restore(files[1], "--force", str(old.place(1)), str(older))
    assert "both of node 1" in twice.err
    assert not new.place(1).exists()

    made = await restore(files[1], "--force", str(old.place(3)), "--yes")
    assert made.status == 0, made.err
    assert made.json["left"]["may_lack"] is True
    for number in (2, 3):
        other = await restore(files[number], "--force", str(old.place(3)), "--id", made.json["ticket"])
        assert other.status == 0, other.err
    wrong = await restore(files[2], "--force", str(old.place(3)), "--id", "aaaaaaaaaa-00000000")
    assert wrong.status == 2
    await new.start()
    try:
        async with client(new) as ledger:
            assert ledger.ledger_id == decided.ledger
            verdicts = await ledger.outcomes([decided, undecided])
            assert (verdicts[decided], verdicts[undecided]) == (Verdict.COMMITTED, Verdict.FORGOTTEN)
            assert (await ledger.info()).incarnation == 2
            later = await ledger.open_session("test", 60.0)
            assert later.id > session.id + 1_000_000
    finally:
        await new.stop()


def flip_in_last_record(folder: Path) -> None:
    """In the last byte of the log that is not zero."""
    path = path_of(folder, numbers_in(folder)[-1])
    data = bytearray(path.read_bytes())
    data[len(data.rstrip(b"\0")) - 1] ^= 1
    path.write_bytes(data)


def empty_log(folder: Path) -> None:
    for number in numbers_in(folder):
        path_of(folder, number).write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: (folder / ANCHOR_NAME).unlink(), "log.anchor is missing"),
        (lambda folder: (folder / ANCHOR_NAME).write_bytes(b""), "log.anchor is damaged"),
        (flip_in_last_record, "its log lacks record"),
        (empty_log, ""),
    ],
)
async def test_the_last_disk_is_gone_on_from_as_far_as_it_can_be_read(
    tmp_path: Path, harm: Callable[[Path], object], told: str
) -> None:
    """No node runs on it, since what is missing may have been acknowledged; and where no other disk is left,
    that would be the end."""
    for place in ("old", "new"):
        (tmp_path / place).mkdir()
    old = Cluster(tmp_path / "old", 3)
    await old.start()
    async with client(old) as ledger:
        session = await ledger.open_session("test", 60.0)
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        await old.settled()  # a follower that gets entries later may store several in one record
        await ledger.decide(session.txid(2), COMMIT, BRANCHES)
        first = ledger.gid(session.txid(1))
        await old.settled()
    await old.stop()
    disk = old.place(3)
    harm(disk)
    files = {each: each.read_bytes() for each in disk.iterdir() if each.is_file() and "lock" not in each.name}
    with pytest.raises(StorageDamaged) as refused:
        await NodeStorage.open(disk)
    commands = [shlex.split(each) for each in re.findall(r"`undoubt ([^`]+)`", str(refused.value))]
    assert commands[-1] == ["cluster", "restore", "--force", str(disk)]
    new = Cluster(tmp_path / "new", 1)
    shutil.rmtree(new.place(1))
    file = configured(tmp_path, new, 1)
    if not told:
        hopeless = await restore(file, *commands[-1][2:], "--yes")
        assert hopeless.status == 1
        assert "no segment of its log can be read" in hopeless.err
        assert "--force" not in hopeless.err, "it was tried"
        assert not new.place(1).exists()
        return
    asked = await restore(file, *commands[-1][2:])
    assert asked.status == 2
    assert asked.err.index(told) < asked.err.index("Have all nodes")
    assert "are lost" in asked.err
    every = [str(old.place(number)) for number in (1, 2)]
    assert "Every acknowledged decision" in (await restore(file, "--force", *every, str(disk))).err
    assert "are lost" in (await restore(file, "--force", every[0], str(disk))).err
    assert {each: each.read_bytes() for each in files} == files, "nothing was changed"
    made = await restore(file, *commands[-1][2:], "--yes")
    assert made.status == 0, made.err
    assert made.json["left"]["may_lack"] is True
    assert told in made.json["left"]["doubts"][0]
    await new.start()
    try:
        async with client(new) as ledger:
            assert (await ledger.outcomes([first]))[first] is Verdict.COMMITTED
            assert (await ledger.info()).incarnation == 2
    finally:
        await new.stop()
