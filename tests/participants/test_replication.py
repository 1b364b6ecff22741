"""What other tools of PostgreSQL do with prepared transactions: logical replication, and pg_upgrade."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import asyncpg
import pytest

from tests.coordinator.ledger.signing import TaggingLedger
from tests.participants.hands import at
from tests.participants.support import WRITE, new_gid, participant_at, run_on
from undoubt.embedded import EmbeddedServer
from undoubt.embedded.binaries import DEBIAN, ENV_BIN, bin_folder
from undoubt.embedded.places import give, server_user
from undoubt.participants.contract import Decision, Settled, Vote
from undoubt.participants.ids import Foreign
from undoubt.participants.registry import Registry
from undoubt.recovery.service import RecoveryService

WAYS = ("",)
KINDS = ("asyncpg",)
TABLE = "create table account (id int primary key, balance int)"
WITHIN_S = 60.0


@pytest.mark.parametrize("decision", list(Decision))
async def test_a_subscriber_of_prepared_transactions(decision: Decision) -> None:
    """Broken if a recovery of the subscriber ends what logical replication has prepared there: the publisher
    decides it, and its subscription would stop for ever
    (https://www.postgresql.org/docs/current/logical-replication-subscription.html)."""
    logical = {"wal_level": "logical"}
    async with EmbeddedServer(logical) as publisher, EmbeddedServer(logical) as subscriber:
        for server in (publisher, subscriber):
            await run_on(server.dsn(), TABLE)
        await run_on(
            publisher.dsn(), "insert into account values (1, 100); create publication p for all tables"
        )
        await run_on(
            subscriber.dsn(),
            f"create subscription s connection '{publisher.dsn()}' publication p with (two_phase = true)",
        )
        await eventually(subscriber, "select coalesce(sum(balance), 0) = 100 from account")
        await eventually(
            subscriber, "select subtwophasestate = 'e' from pg_subscription"
        )  # before that it replicates at COMMIT PREPARED only
        source, copy = participant_at(publisher.dsn()), participant_at(subscriber.dsn())
        branch = await source.begin(gid := new_gid(), timeout_s=30)
        await at(branch).execute(WRITE)
        assert (await branch.prepare()).vote is Vote.PREPARED
        await branch.release()
        await eventually(subscriber, "select count(*) = 1 from pg_prepared_xacts")
        [listed] = await copy.in_doubt()
        assert isinstance(listed.gid, Foreign)
        assert str(listed.gid).startswith("pg_gid_")
        registry = Registry()
        registry.add(copy)
        report = await RecoveryService(TaggingLedger("abcdefghij"), registry).run_once()
        assert [line.action for line in report.lines if line.result != "nothing"] == []
        assert [one.gid for one in await copy.in_doubt()] == [listed.gid]
        assert await source.settle(gid, decision, None) is Settled.APPLIED
        await eventually(subscriber, "select count(*) = 0 from pg_prepared_xacts")
        balance = 90 if decision is Decision.COMMIT else 100
        await eventually(subscriber, f"select balance = {balance} from account where id = 1")
        await run_on(subscriber.dsn(), "drop subscription s")
        await source.close()
        await copy.close()


async def eventually(server: EmbeddedServer, sql: str) -> None:
    connection = await asyncpg.connect(server.dsn())
    try:
        async with asyncio.timeout(WITHIN_S):
            while not await connection.fetchval(sql):
                await asyncio.sleep(0.02)
    finally:
        await connection.close()


def other_than(new: Path) -> Path:
    """The programs of an older version."""
    for found in sorted(DEBIAN.glob("*/bin/initdb")):
        if found.parent != new:
            return found.parent
    lacking = "pg_upgrade needs a second, older PostgreSQL: Debian's package postgresql"
    if os.environ.get("CI") == "true":
        pytest.fail(lacking)
    pytest.skip(lacking)


async def test_pg_upgrade_refuses_what_is_prepared(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if the page for operators is wrong: prepared transactions would be lost by an upgrade, silently
    (https://www.postgresql.org/docs/current/pgupgrade.html)."""
    folder = tmp_path_factory.mktemp("upgrade")
    for parent in (folder, *list(folder.parents)[:-2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    give(folder, server_user())
    monkeypatch.delenv(ENV_BIN, raising=False)  # to the version of the wheel, whatever the others run on
    new = bin_folder(folder)
    old = other_than(new)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        user = server_user()
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )

    for programs, name, more in ((old, "old", ()), (new, "new", ("--no-data-checksums",))):
        made = run(str(programs / "initdb"), "-D", name, "-U", "postgres", "--locale=C.UTF-8", "-N", *more)
        if made.returncode and more:
            made = run(str(programs / "initdb"), "-D", name, "-U", "postgres", "--locale=C.UTF-8", "-N")
        assert made.returncode == 0, made.stderr
        with (folder / name / "postgresql.conf").open("a") as settings:
            settings.write("max_prepared_transactions = 2\nlisten_addresses = ''\n")
    check = [str(new / "pg_upgrade"), "--check", "-b", str(old), "-B", str(new), "-d", "old", "-D", "new"]
    check += ["-U", "postgres", "--socketdir", str(folder)]
    control = [str(old / "pg_ctl"), "-w", "-D", "old", "-l", "log", "-o", f"-k {folder}"]
    statement = "begin; create table t (); prepare transaction 'undoubt:one'"
    for sql, refused in ((statement, True), ("rollback prepared 'undoubt:one'", False)):
        assert run(*control, "start").returncode == 0
        connection = await asyncpg.connect(f"postgresql://postgres@/postgres?host={folder}")
        await connection.execute(sql)
        await connection.close()
        assert run(*control, "stop").returncode == 0
        looked = await asyncio.to_thread(run, *check)
        assert ("prepared transactions" in looked.stdout and looked.returncode != 0) is refused, looked.stdout
