"""The sidecar in front of every ledger: commits, aborts, and what is known after it was killed."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from tests.coordinator.node.processes import processes
from tests.ports import free_ports
from tests.undoubt.cli.harness import undoubt
from tests.undoubt.sidecar.conftest import TABLES
from tests.undoubt.sidecar.stage import (
    Stage,
    configuration,
    eventually_none_prepared,
    prepare,
    staged,
    value,
)

TAKE = "update account set balance = balance - 10 where id = {}"
GIVE = "update account set balance = balance + 10 where id = {}"


@pytest.fixture(params=["sqlite", "postgresql", "raft"])
async def on_ledger(
    request: pytest.FixtureRequest, tmp_path: Path, databases: dict[str, str], database: str
) -> AsyncIterator[Stage]:
    for dsn in databases.values():
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(TABLES)
    if request.param == "sqlite":
        with staged(tmp_path, databases) as stage:
            yield stage
    elif request.param == "postgresql":
        url = database.replace("postgresql://", "postgresql+psycopg://")
        made = undoubt("ledger", "init", "--yes", "--config", str(configuration(tmp_path, url, databases, 1)))
        assert made.status == 0, made.err
        with staged(tmp_path, databases, url) as stage:
            yield stage
    else:
        more = "[recovery]\ninterval_s = 0.2\n" + "".join(
            f'[participants.{name}]\ndsn = "{dsn}"\n' for name, dsn in databases.items()
        )
        async with processes(tmp_path, more) as nodes:
            with staged(tmp_path, databases, nodes.settings.url) as stage:
                yield stage


def balances(stage: Stage, account: int) -> list[int]:
    return [
        value(dsn, f"select balance from account where id = {account}") for dsn in stage.databases.values()
    ]


def test_commit_abort_and_kill(on_ledger: Stage) -> None:
    stage, payments = on_ledger, on_ledger.databases["payments"]
    done = stage.tcp().begin()
    done.run(TAKE.format(1))
    prepare(payments, done.announce("payments"), GIVE.format(1))
    assert done.commit().json()["outcome"] == "committed"
    assert balances(stage, 1) == [90, 110]

    if stage.ledger.startswith("raft://"):
        voted = stage.tcp().begin(protocol="paxos")
        voted.run(TAKE.format(4))
        prepare(payments, voted.announce("payments"), GIVE.format(4))
        assert voted.commit().json()["outcome"] == "committed"
        assert balances(stage, 4) == [90, 110]

    missing = stage.tcp().begin()
    missing.run(TAKE.format(2))
    branch = missing.announce("payments")
    assert missing.commit().json()["outcome"] == "aborted"
    prepare(payments, branch, GIVE.format(2))
    eventually_none_prepared(payments)
    assert balances(stage, 2) == [100, 100]

    undecided = stage.tcp().begin()
    undecided.run(TAKE.format(3))
    prepare(payments, undecided.announce("payments"), GIVE.format(3))
    assert stage.end(signal.SIGKILL) == -signal.SIGKILL
    stage.start()
    assert stage.tcp().get(done.path).json()["state"] == "committed"
    assert stage.tcp().post(f"{done.path}/commit").json()["outcome"] == "committed"
    assert stage.tcp().get(missing.path).json()["state"] == "aborted"
    end = time.monotonic() + 60
    while (told := stage.tcp().get(undecided.path, Prefer="wait=5").json())["state"] == "unknown":
        assert time.monotonic() < end, told
    assert told["state"] == "aborted"
    answer = stage.tcp().post(f"{undecided.path}/commit")
    assert (answer.status_code, answer.json()["outcome"]) == (409, "aborted")
    eventually_none_prepared(payments)
    assert balances(stage, 3) == [100, 100]


async def test_while_the_ledger_is_silent_the_outcome_is_unknown(
    tmp_path: Path, databases: dict[str, str]
) -> None:
    """COMMIT may have been recorded: who is told that it is aborted would do its work again."""
    for dsn in databases.values():
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(TABLES)
    async with processes(tmp_path) as nodes:
        with staged(tmp_path, databases, nodes.settings.url) as stage:
            work = stage.tcp().begin(timeout_ms=4000)
            work.run(TAKE.format(1))
            prepare(databases["payments"], work.announce("payments"), GIVE.format(1))
            for number in nodes.numbers:
                nodes.signal(number, signal.SIGSTOP)
            answer = work.commit()
            assert (answer.status_code, answer.json()["outcome"]) == (202, "unknown")
            assert answer.headers["location"] == work.path
            assert work.show()["state"] == "unknown"
            assert work.rollback().status_code == 409
            listed = stage.tcp().get("/v1/transactions?state=in_doubt").json()["transactions"]
            assert [each["id"] for each in listed] == [work.id]
            assert stage.tcp(None).get("/readyz").status_code == 503
            for number in nodes.numbers:
                nodes.signal(number, signal.SIGCONT)
            while (told := work.show(wait_s=5))["state"] == "unknown":
                pass
            money = [100, 100] if told["state"] == "aborted" else [90, 110]
            assert told["state"] in {"committed", "aborted"}
            assert work.commit().json()["outcome"] == told["state"]
            while balances(stage, 1) != money:
                time.sleep(0.05)
            for dsn in databases.values():
                with psycopg.connect(dsn, autocommit=True) as connection:
                    left = connection.execute("select gid from pg_prepared_xacts").fetchall()
                assert left == [] or told["state"] == "aborted"
            for dsn in databases.values():
                end_by_hand(dsn, told["state"])


def end_by_hand(dsn: str, state: str) -> None:
    """No recovery runs there: these nodes have no participants."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for [gid] in connection.execute(
            "select gid from pg_prepared_xacts where database = current_database()"
        ).fetchall():
            assert state == "aborted"
            connection.execute(f"rollback prepared '{gid}'".encode())


def test_the_end_is_orderly(shops: dict[str, str], tmp_path: Path) -> None:
    """SIGTERM: what is open may be committed for a while, nothing begins, and what stays open is undone."""
    with staged(tmp_path, shops, drain_s=15.0) as stage:
        kept, left = stage.tcp().begin(), stage.tcp().begin()
        for work, account in ((kept, 931), (left, 932)):
            work.run(TAKE.format(account))
        branch = left.announce("payments")
        prepare(shops["payments"], branch, GIVE.format(932))
        assert stage.process is not None
        ended: list[int] = []
        watching = threading.Thread(target=lambda: ended.append(stage.end(signal.SIGTERM)))
        watching.start()
        while (refused := stage.tcp().post("/v1/transactions")).status_code == 201:
            stage.tcp().post(f"/v1/transactions/{refused.json()['id']}/rollback")
        assert (refused.status_code, refused.json()["name"]) == (503, "Draining")
        assert stage.tcp(None).get("/readyz").status_code == 503
        assert stage.tcp(None).get("/livez").status_code == 200
        assert kept.commit().status_code == 200
        watching.join()
        assert ended == [0]
        assert not stage.socket.exists()
    assert value(shops["payments"], "select count(*) from pg_prepared_xacts") == 0
    for account, balance in ((931, 90), (932, 100)):
        assert value(shops["orders"], f"select balance from account where id = {account}") == balance


def test_two_at_one_socket_are_refused(shops: dict[str, str], tmp_path: Path) -> None:
    """The second would take the first one's clients."""
    with staged(tmp_path, shops) as stage:
        again = undoubt("sidecar", "--config", str(stage.config))
        assert (again.status, "another process serves" in again.err) == (2, True), again.err
        assert stage.unix().get("/livez").status_code == 200


def test_the_socket_is_beside_the_configuration_unless_set(shops: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="undoubt-") as folder:
        config = configuration(Path(folder), f"sqlite:///{folder}/ledger.db", shops, free_ports(1)[0])
        socket = Path(folder, "undoubt-sidecar.run", "http.sock")
        stage = Stage(Path(folder), socket, config, 0, shops, "")
        try:
            stage.start()
            assert stage.unix().get("/livez").status_code == 200
            assert (socket.stat().st_mode & 0o777, socket.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        finally:
            stage.close()


def test_a_socket_with_too_long_a_path_is_refused_with_a_way_out(
    shops: dict[str, str], tmp_path: Path
) -> None:
    socket = tmp_path / ("s" * 107) / "http.sock"
    ledger = f"sqlite:///{tmp_path}/ledger.db"
    config = configuration(tmp_path, ledger, shops, free_ports(1)[0], socket=f'"{socket}"')
    refused = undoubt("sidecar", "--config", str(config))
    assert refused.status == 2, refused.err
    assert "sidecar.socket is too long" in refused.err, refused.err
    assert "at most 107; choose a shorter one" in refused.err, refused.err


def test_a_token_is_drawn(tmp_path: Path) -> None:
    """The token on stdout, its hash for the configuration on stderr, and in neither the other."""
    drawn = undoubt("sidecar", "--new-token", "shop", cwd=tmp_path)
    assert drawn.status == 0
    assert drawn.out.startswith("undoubt_")
    assert drawn.out.strip() not in drawn.err
    (tmp_path / "undoubt.toml").write_text(drawn.err)
    assert undoubt("participants", "list", "-o", "json", cwd=tmp_path).json == []
