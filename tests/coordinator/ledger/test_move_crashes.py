"""The moving process is killed at every step, on every backend. Each test's docstring says what breaks if it
fails."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from tests.etcd import EtcdCluster
from tests.prove.mover_process import STEPS
from tests.prove.processes import Child
from tests.servers import Server
from undoubt.coordinator.errors import LedgerError, LedgerMissing, LedgerMoved, MoveRefused
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.moving import move as moving

from .move_stage import KINDS, Places, fill, places
from .test_move import check

PAIRS = (
    *(("sqlite", "postgresql"), ("postgresql", "raft"), ("raft", "etcd"), ("etcd", "sqlite")),
    *(("sqlite", "etcd"), ("raft", "postgresql")),
)


async def killed_at(there: Places, source: str, target: str, step: str) -> None:
    settings = json.dumps(msgspec.to_builtins(there.settings(source)))
    child = await Child.start("tests.prove.mover_process", settings, there.urls[target], step)
    assert await child.ended() == -9


async def answers(there: Places, kind: str, ledger_id: str) -> bool:
    """Whether that ledger answers there. (A new cluster is another, unused one.)"""
    try:
        ledger = await open_ledger(there.settings(kind), serves=True)
    except LedgerError:
        return False
    await ledger.close()
    return ledger.ledger_id == ledger_id


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_a_move_that_was_killed_is_completed_by_repeating_it(
    source: str, target: str, step: str, tmp_path: Path, postgres: Server, etcd: EtcdCluster
) -> None:
    """After a crash two places answer, or a repetition cannot go on, or something is lost by it."""
    async with places(tmp_path, postgres, etcd, source, target) as there:
        async with there.opened(source, create=True) as ledger:
            filled = await fill(ledger)
            before = await ledger.info()
        await killed_at(there, source, target, step)
        assert await answers(there, source, before.ledger_id) == (step == "seal")
        assert await answers(there, target, before.ledger_id) == (step == "done")
        await moving.move(there.settings(source), there.urls[target])
        assert not await answers(there, source, before.ledger_id)
        async with there.opened(target) as ledger:
            await check(ledger, filled)
            assert (await ledger.info()).incarnation == before.incarnation + 1
        again = await moving.move(there.settings(source), there.urls[target])
        assert again.repeated


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_move_that_was_killed_can_be_undone_until_the_old_place_is_left(
    kind: str, step: str, tmp_path: Path, postgres: Server, etcd: EtcdCluster
) -> None:
    """An undone move loses records, or leaves two places that answer; or one that is too late is undone."""
    target = "postgresql-2" if kind == "etcd" else "etcd-2"
    async with places(tmp_path, postgres, etcd, kind, target) as there:
        async with there.opened(kind, create=True) as ledger:
            filled = await fill(ledger)
        await killed_at(there, kind, target, step)
        if step in {"seal", "enter", "done"}:
            with pytest.raises(MoveRefused, match="under way" if step == "seal" else "cannot be undone"):
                await moving.undo(there.settings(kind))
            return
        await moving.undo(there.settings(kind))
        async with there.opened(kind) as ledger:
            assert "committed" in set((await ledger.outcomes([filled.txids["committed"]])).values())
            session = await ledger.open_session("goes on", 60.0)
            await ledger.close_session(session)
        if step == "leave":  # what was copied there does not answer, and is replaced
            with pytest.raises(LedgerMoved, match="is being moved here"):
                await open_ledger(there.settings(target))
        await moving.move(there.settings(kind), there.urls[target])
        async with there.opened(target) as ledger:
            assert session.id in {each.id for each in await ledger.sessions()}
            await check(ledger, filled)


async def test_a_move_to_another_place_does_not_replace_the_one_under_way(
    tmp_path: Path, postgres: Server, etcd: EtcdCluster
) -> None:
    """A repetition with another URL makes a second copy."""
    async with places(tmp_path, postgres, etcd, "sqlite", "etcd", "postgresql") as there:
        async with there.opened("sqlite", create=True) as ledger:
            await fill(ledger)
        await killed_at(there, "sqlite", "etcd", "leave")
        with pytest.raises(LedgerMoved, match="sealed"):
            await moving.move(there.settings("sqlite"), there.urls["postgresql"])
        with pytest.raises(LedgerMissing):
            await open_ledger(there.settings("postgresql"))
