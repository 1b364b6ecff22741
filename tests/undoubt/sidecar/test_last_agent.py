"""Last-agent commit through a sidecar: the sidecar runs the agent's statements, the caller or the sidecar the
others. Each test's docstring says what is broken if it fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import Server
from tests.undoubt.sidecar.conftest import migrated_pair
from tests.undoubt.sidecar.stage import Stage, prepare, recorded, staged, value
from undoubt.coordinator.ledger.contract import RecordedDecision

MORE = "update account set balance = balance + 1 where id = 1"
SEEN = "select balance from account where id = 1"


@pytest.fixture(scope="module")
def migrated(
    postgres: Server, other_postgres: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    databases = migrated_pair(postgres, other_postgres, "sidecar_last")
    with staged(tmp_path_factory.mktemp("last"), databases) as made:
        yield made


def balances(stage: Stage) -> list[int]:
    return [value(dsn, SEEN) for dsn in stage.databases.values()]


def eventually_recorded(stage: Stage, txid: str) -> None:
    while recorded(stage, txid) is RecordedDecision.NOT_RECORDED:
        pass
    assert recorded(stage, txid) is RecordedDecision.COMMIT


def test_a_branch_of_the_caller_commits_with_the_agent(migrated: Stage) -> None:
    """Broken if the two are split, or another process never learns the outcome from the ledger."""
    before = balances(migrated)
    work = migrated.tcp().begin(protocol="last", agent="orders")
    refused = work.client.post(f"{work.path}/branches", {"participant": "orders"})
    assert (refused.status_code, refused.json()["name"]) == (409, "LastAgent")
    work.run(MORE)
    prepare(migrated.databases["payments"], work.announce("payments"), MORE)
    assert work.show()["protocol"] == "last"
    assert work.commit().json()["outcome"] == "committed"
    assert balances(migrated) == [one + 1 for one in before]
    eventually_recorded(migrated, work.id)


def test_a_branch_that_is_not_prepared_keeps_the_agent_from_committing(migrated: Stage) -> None:
    before = balances(migrated)
    work = migrated.tcp().begin(protocol="last", agent="orders")
    work.run(MORE)
    work.announce("payments")
    assert work.commit().status_code == 409
    assert balances(migrated) == before


def test_the_agent_alone_is_recorded(migrated: Stage) -> None:
    """Broken if a client that has lost the answer cannot learn that it is committed."""
    before = balances(migrated)
    work = migrated.tcp().begin(protocol="last", agent="orders")
    work.run(MORE)
    assert work.commit().json()["outcome"] == "committed"
    assert balances(migrated) == [before[0] + 1, before[1]]
    eventually_recorded(migrated, work.id)


def test_a_wrong_agent_is_a_wrong_request(migrated: Stage) -> None:
    for body in (
        {"protocol": "last"},
        {"protocol": "last", "agent": "nobody"},
        {"protocol": "2pc", "agent": "orders"},
        {"protocol": "last", "agent": "orders", "key": "k"},
    ):
        answer = migrated.tcp().post("/v1/transactions", body)
        assert answer.status_code in {404, 422}, answer.text
