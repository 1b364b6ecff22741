"""Two sidecars on each other kind of ledger: what joins on PostgreSQL's joins on a file and on a cluster."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from tests.coordinator.node.processes import processes
from tests.undoubt.cli.harness import undoubt
from tests.undoubt.sidecar.conftest import OF_B, TABLES
from tests.undoubt.sidecar.pair import Pair
from tests.undoubt.sidecar.stage import eventually_none_prepared, prepare, staged

TAKE = "update account set balance = balance - 10 where id = {}"
GIVE = "update account set balance = balance + 10 where id = {}"


@pytest.fixture(params=["sqlite", "raft"])
async def pair_on(
    request: pytest.FixtureRequest, tmp_path: Path, databases: dict[str, str]
) -> AsyncIterator[Pair]:
    for dsn in databases.values():
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(TABLES)
    places = [tmp_path / name for name in "ab"]
    for place in places:
        place.mkdir()
    with ExitStack() as stack:

        def pair(ledger: str) -> Pair:
            a, b = (
                stack.enter_context(staged(place, databases, ledger, more, reachable=True))
                for place, more in zip(places, ("", OF_B), strict=True)
            )
            return Pair(a, b)

        if request.param == "sqlite":
            yield pair(f"sqlite:///{tmp_path}/ledger.db")
            return
        more = "[recovery]\ninterval_s = 0.2\n" + "".join(
            f'[participants.{name}]\ndsn = "{dsn}"\n' for name, dsn in databases.items()
        )
        async with processes(tmp_path, more) as nodes:
            yield pair(nodes.settings.url)
            stack.close()


def test_a_transaction_of_two_services(pair_on: Pair) -> None:
    """Also after the sidecar that began it was killed: the other one tells the outcome."""
    pair = pair_on
    work, joined = pair.begin()
    work.run(TAKE.format(1))
    assert joined.sql(GIVE.format(1), participant="payments").status_code == 200
    own = joined.announce("payments")
    prepare(pair.databases["payments"], own, GIVE.format(2))
    assert joined.client.post(f"{work.path}/commit").status_code == 403
    answer = pair.b.tcp("shop").post(f"{work.path}/commit")
    assert (answer.status_code, answer.json()["outcome"]) == (200, "committed"), answer.text
    assert (pair.balances(1), pair.balances(2)) == ([90, 110], [100, 110])

    lost, there = pair.begin()
    lost.run(TAKE.format(3))
    prepare(pair.databases["payments"], there.announce("payments"), GIVE.format(3))
    pair.a.end(signal.SIGKILL)
    assert joined.show()["state"] == "committed"
    end = time.monotonic() + 60
    while (state := there.show()["state"]) != "aborted":
        assert state == "unknown"
        assert time.monotonic() < end
        time.sleep(0.1)
    for dsn in pair.databases.values():
        eventually_none_prepared(dsn)
    assert pair.balances(3) == [100, 100]


def test_marks_of_sessions_are_shown_nowhere_as_transactions(pair_on: Pair) -> None:
    """Broken if an operator finds decisions of a participant that does not exist."""
    pair = pair_on
    config = str(pair.b.config)
    told = undoubt("tx", "list", "-o", "json", "--config", config)
    assert (told.status, json.loads(told.out)) == (0, []), told.err
    told = undoubt("indoubt", "list", "-o", "json", "--config", config)
    assert (told.status, json.loads(told.out)["branches"]) == (0, []), told.err
    listed = pair.b.tcp("operator").get("/v1/transactions?state=in_doubt").json()
    assert listed["transactions"] == []
    work, _ = pair.begin()
    work.run("select 1")
    assert work.commit().status_code == 200
    told = undoubt("tx", "list", "-o", "json", "--limit", "1", "--config", config)
    assert [each["txid"] for each in json.loads(told.out)] == [work.id]
    for stage, count in ((pair.a, 1), (pair.b, 0)):
        metrics = stage.tcp("operator").get("/metrics").text
        ended = sum(
            float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith("undoubt_transactions_total")
        )
        assert ended == count, metrics
