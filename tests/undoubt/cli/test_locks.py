"""``undoubt locks``: who has which lock, in keys that scripts rely on, and how one is taken away."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.undoubt.cli.harness import environment
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger
from undoubt.coordinator.settings import CoordinatorSettings, LedgerSettings
from undoubt.participants.registry import Registry


class Place:
    """A ledger with one coordinator, and the command line of another process."""

    def __init__(self, folder: Path, ledger: SqliteLedger, coordinator: Coordinator) -> None:
        self.folder, self.ledger, self.coordinator = folder, ledger, coordinator

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "undoubt", *arguments,
            cwd=self.folder, env=environment(),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def json(self, *arguments: str) -> Any:
        status, out, err = await self.run(*arguments, "-o", "json")
        assert status == 0, err
        return json.loads(out)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    (tmp_path / "undoubt.toml").write_text(f'[ledger]\nurl = "{url}"\n')
    ledger = await SqliteLedger.open(tmp_path / "ledger.db", LedgerSettings(url=url), create=True)
    async with Coordinator(ledger, Registry(), CoordinatorSettings(name="shop")) as coordinator:
        yield Place(tmp_path, ledger, coordinator)
    await ledger.close()


async def test_list_and_show(place: Place) -> None:
    assert await place.json("locks", "list") == []
    async with (
        place.coordinator.lock("nightly report") as lock,
        place.coordinator.lock("page", shared=True),
        place.coordinator.lock("page", shared=True),
    ):
        waiter = asyncio.create_task(place.coordinator.lock("page").acquire())
        while not [entry for info in await place.ledger.locks() for entry in info.waiters]:
            await asyncio.sleep(0.01)
        shown = await place.json("locks", "list")
        assert [(one["name"], len(one["holders"]), one["waiting"]) for one in shown] == [
            ("nightly report", 1, 0),
            ("page", 2, 1),
        ]
        holder = shown[0]["holders"][0]
        assert set(holder) == {"token", "mode", "session", "owner", "since", "age_s", "txid"}
        assert (holder["token"], holder["mode"], holder["txid"]) == (lock.token, "exclusive", None)
        assert holder["owner"] == "shop, locks"
        assert shown[1]["waiters"][0]["token"] is None
        assert (await place.json("locks", "list", "--after", "nightly report"))[0]["name"] == "page"
        assert (await place.json("locks", "show", "page"))["waiting"] == 1
        status, out, _ = await place.run("locks", "show", "nightly report")
        assert status == 0
        assert str(lock.token) in out
        waiter.cancel()
    assert (await place.run("locks", "show", "page"))[0] == 3
    assert (await place.run("locks", "show", ""))[0] == 2


async def test_release_takes_it_from_the_one_that_was_named(place: Place) -> None:
    """Broken if another holder than the one that was shown loses the lock, or nobody knows who did it."""
    lock = await place.coordinator.lock("job").acquire()
    release = ("locks", "release", "job", "--token")
    assert (await place.run(*release, str(lock.token)))[0] == 2  # no terminal, and no --yes
    assert (await place.run(*release, str(lock.token + 1), "--yes"))[0] == 3
    assert await place.ledger.locks()
    status, out, err = await place.run(*release, str(lock.token), "--yes", "--note", "its machine burned")
    assert (status, "is released" in out) == (0, True)
    assert "held by shop, locks" in err
    assert await place.ledger.locks() == []
    assert "operator" in await lock.lost()
    [act] = await place.ledger.acts(limit=5)
    assert (act.verb, act.subject) == ("locks release", f"job (token {lock.token})")
    assert (act.note, act.result) == ("its machine burned", "done")
    assert (await place.run(*release, str(lock.token), "--yes"))[0] == 3
