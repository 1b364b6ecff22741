"""The comparison on real servers: what it prints is what was done."""

from __future__ import annotations

import json
from collections import Counter

import asyncpg
import pytest
from click.testing import CliRunner

from tests.servers import Server, fresh_database
from undoubt.bench.audit import WrongCount, audit
from undoubt.bench.contenders import CONTENDERS
from undoubt.bench.field import ContenderFailed, field
from undoubt.bench.rounds import play
from undoubt.cli.root import root
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.ids import Protocol


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(root, ["bench", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_one_object_with_a_row_for_each_contender_and_concurrency() -> None:
    """Scripts read rows and ratios; every contender must really have moved something in both databases."""
    names = ",".join(CONTENDERS)
    status, out, err = run(
        "--seconds", "1.5", "--concurrency", "1,4", "--contenders", names, "--output", "json"
    )
    assert status == 0, err
    told = json.loads(out)
    assert {(row["contender"], row["concurrency"]) for row in told["rows"]} == {
        (name, number) for name in CONTENDERS for number in (1, 4)
    }
    for row in told["rows"]:
        assert set(row) == {"contender", "concurrency", "tps", "p50_ms", "p99_ms", "client_cpu_us_per_tx"}
        assert row["tps"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    baselines = {(ratio["contender"], ratio["baseline"]) for ratio in told["ratios"]}
    assert {(name, "naive") for name in CONTENDERS if name != "naive"} <= baselines


def test_round_trips_are_measured_for_each_contender() -> None:
    """Everything moves money over the proxies, near and far, and the table has what scripts read."""
    names = ["naive", "undoubt-sqlite", "undoubt-raft"]
    status, out, err = run(
        "--rtt", "20", "--seconds", "3", "--concurrency", "1", "--contenders", ",".join(names), "-o", "json"
    )
    assert status == 0, err
    told = json.loads(out)
    assert told["rtt_ms"] == 20
    assert [each["contender"] for each in told["round_trips"]] == names
    # A lower bound on any machine: an update, PREPARE and COMMIT PREPARED follow one another.
    assert min(row["p50_ms"] for row in told["rows"]) > 3 * 20


def test_a_distance_that_cannot_be_built_is_refused() -> None:
    for arguments, why in (
        (("--rtt", "0"), "0"),
        (("--rtt", "1", "--concurrency", "256"), "contenders times concurrency"),
        (("--rtt", "1", "--concurrency", "1", "--dsn", "a", "b"), "leave --dsn out"),
    ):
        status, _, err = run(*arguments)
        assert (status, why in err) == (2, True), err


async def test_a_transfer_that_is_missing_in_one_database_has_no_figures(
    postgres: Server, other_postgres: Server
) -> None:
    """A contender that counts what it did not do would win every comparison."""
    async with (
        fresh_database(postgres, "one") as one,
        fresh_database(other_postgres, "two") as two,
        field(["naive"], 2, (one, two)) as built,
    ):
        _, transfers = await play(built.contenders, [2], 0.3, lambda _: None)
        assert transfers["naive"] > 0
        await audit(built, transfers)
        with pytest.raises(WrongCount, match=r"naive made \d+ transfers, orders has \d+"):
            await audit(built, {"naive": transfers["naive"] + 1})
        connection = await asyncpg.connect(two)
        await connection.execute("update account set balance = balance - 1 where id = 0")
        await connection.close()
        with pytest.raises(WrongCount, match="payments has"):
            await audit(built, transfers)


async def test_each_protocol_of_the_cluster_is_what_it_says(postgres: Server, other_postgres: Server) -> None:
    """Figures of Paxos Commit that were two-phase commit's, or of a ledger in a file, would look as good."""
    sidecars = ["undoubt-sidecar", "undoubt-sidecar-sql"]
    names = ["undoubt-raft", "undoubt-raft-3pc", "undoubt-raft-paxos", *sidecars]
    async with (
        fresh_database(postgres, "one") as one,
        fresh_database(other_postgres, "two") as two,
        field(names, 2, (one, two)) as built,
    ):
        _, transfers = await play(built.contenders, [2], 0.3, lambda _: None)
        await audit(built, transfers)
        assert built.nodes is not None
        ledger = await open_ledger(LedgerSettings(url=built.nodes.url))
        try:
            told = await ledger.transactions(limit=10_000)
        finally:
            await ledger.close()
    # A sidecar marks its session by a record with one branch.
    counted = Counter(transaction.protocol for transaction in told if len(transaction.branches) == 2)
    assert counted[Protocol.TWO_PHASE] == sum(transfers[name] for name in ("undoubt-raft", *sidecars))
    # What the participants or the acceptors have decided may still be on its way into the ledger.
    assert 0 < counted[Protocol.THREE_PHASE] <= transfers["undoubt-raft-3pc"]
    assert 0 < counted[Protocol.PAXOS] <= transfers["undoubt-raft-paxos"]


async def test_a_contender_that_dies_fails_the_run(postgres: Server) -> None:
    """Else its figures would be those of the turns before."""
    async with (
        fresh_database(postgres, "one") as one,
        fresh_database(postgres, "two") as two,
        field(["local"], 1, (one, two)) as built,
    ):
        contender = built.contenders["local"]
        contender._process.kill()
        with pytest.raises(ContenderFailed, match="local: its process ended with status -9"):
            await contender.turn(1, 0.2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--contenders", "naive,nobody"], "'nobody' is not one of local, naive"),
        (["--concurrency", "1,many"], "numbers with commas between"),
        (["--concurrency", "0"], "each from 1 to 256"),
    ],
)
def test_bad_arguments_name_the_way_out(arguments: list[str], says: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert says in " ".join(err.split())
