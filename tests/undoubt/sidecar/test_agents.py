"""Statements of a service that joins run at its own sidecar, the agent of the one that began the transaction.
Processes are real; either is killed before and after the branch is prepared."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import psycopg
import pytest

from tests.undoubt.sidecar.pair import Pair
from tests.undoubt.sidecar.stage import Work, eventually_none_prepared, staged, value
from tests.undoubt.sidecar.test_joining import GIVE, TAKE, Listener, listener
from undoubt.coordinator.errors import DistributedDeadlock
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import PrepareResult, PrepareUnanswered
from undoubt.participants.errors import BranchFailed
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.postgres.announced import AnnouncedBranch
from undoubt.serve.sidecar.agent_branch import Agent, AgentBranch
from undoubt.serve.sidecar.lookup import session_name

__all__ = ["listener"]

SLOW = """
create table if not exists slow (id int);
create or replace function waits() returns trigger language plpgsql as
    $$ begin perform pg_advisory_xact_lock_shared(77); return null; end $$;
drop trigger if exists waits on slow;
create constraint trigger waits after insert on slow deferrable initially deferred
    for each row execute function waits();
"""
"""The PREPARE of a branch that has written there waits as long as a test holds the lock."""
IN_TRANSACTION = (
    "select count(*) from pg_stat_activity where datname = current_database()"
    " and state like 'idle in transaction%'"
)


def given(joined: Work, account: int) -> None:
    answer = joined.sql(GIVE.format(account), participant="payments")
    assert answer.status_code == 200, answer.text


def both(pair: Pair, account: int) -> tuple[Work, Work]:
    """A transfer, of which the second part runs at the second sidecar."""
    work, joined = pair.begin()
    work.run(TAKE.format(account))
    given(joined, account)
    return work, joined


def aborted(pair: Pair, work: Work, account: int) -> dict[str, Any]:
    answer = work.commit()
    assert (answer.status_code, answer.json()["outcome"]) == (409, "aborted"), answer.text
    assert pair.balances(account) == [100, 100]
    return dict(answer.json())


def eventually(dsn: str, sql: str, wanted: object) -> None:
    end = time.monotonic() + 30
    while (found := value(dsn, sql)) != wanted:
        assert time.monotonic() < end, found
        time.sleep(0.02)


def test_statements_of_the_second_service_run_at_its_own_sidecar(pair: Pair) -> None:
    """Which the owner's could not: it runs no SQL in that database."""
    account = pair.account()
    work, joined = both(pair, account)
    row = joined.sql(f"select balance from account where id = {account}", participant="payments")
    assert row.json()["rows"] == [[110]]
    refused = work.sql("select 1", participant="payments")
    assert (refused.status_code, refused.json()["name"]) == (403, "NoSqlHere")
    assert [each["run_by"] for each in work.show()["branches"]] == ["sidecar", "agent"]
    assert pair.balances(account) == [100, 100]
    answer = work.commit()
    assert (answer.status_code, answer.json()["outcome"]) == (200, "committed"), answer.text
    assert pair.balances(account) == [90, 110]
    late = joined.sql("select 1", participant="payments")
    assert (late.status_code, late.json()["name"]) == (409, "TransactionEnded")


def test_a_branch_of_an_agent_that_only_reads_is_committed(pair: Pair) -> None:
    work, joined = pair.begin()
    assert joined.sql("select 1", participant="payments").status_code == 200
    assert work.commit().status_code == 200


def test_a_rollback_frees_what_the_agent_has_locked(pair: Pair) -> None:
    """Broken if it waits for the deadline."""
    account = pair.account()
    work, joined = both(pair, account)
    assert work.rollback().status_code == 200
    with psycopg.connect(pair.databases["payments"], autocommit=True) as connection:
        connection.execute("set lock_timeout = '5s'")
        connection.execute(GIVE.format(account).encode())
        connection.execute(TAKE.format(account).encode())
    refused = joined.sql("select 1", participant="payments")
    assert (refused.status_code, refused.json()["name"]) == (409, "TransactionAborted")


def test_a_statement_that_fails_at_the_agent_aborts(pair: Pair) -> None:
    account = pair.account()
    work, joined = both(pair, account)
    failed = joined.sql("select 1/0", participant="payments")
    assert (failed.status_code, failed.json()["sqlstate"]) == (422, "22012")
    assert "payments" in aborted(pair, work, account)["participant"]


def test_a_deadlock_is_told_at_the_agent(pair: Pair) -> None:
    """Broken if the caller reads that its statement was cancelled, and does not run the transaction again."""
    account = pair.account()
    work, joined = both(pair, account)
    answers: list[httpx.Response] = []
    sleeping = threading.Thread(
        target=lambda: answers.append(joined.sql("select pg_sleep(600)", participant="payments"))
    )
    sleeping.start()
    asleep = "from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
    eventually(pair.databases["payments"], f"select count(*) {asleep}", 1)

    async def doomed() -> None:
        opened = await open_ledger(LedgerSettings(url=pair.a.ledger))
        try:
            txid = TxId.parse(work.id)
            await opened.doom(txid, str(DistributedDeadlock(txid, [work.id], ["orders", "payments"])))
        finally:
            await opened.close()

    asyncio.run(doomed())
    value(pair.databases["payments"], f"select pg_cancel_backend(pid) {asleep}")
    sleeping.join()
    [told] = answers
    assert (told.status_code, told.json()["name"]) == (409, "TransactionAborted"), told.text
    assert told.json()["outcome"] == "aborted"
    assert "deadlock across orders, payments" in told.json()["reason"]
    again = joined.sql("select 1", participant="payments")
    assert (again.status_code, "deadlock across" in again.json()["detail"]) == (409, True)
    aborted(pair, work, account)


def test_an_answer_that_is_too_large_aborts_at_the_agent(pair: Pair) -> None:
    account = pair.account()
    work, joined = both(pair, account)
    failed = joined.sql("select generate_series(1, 1000000)", participant="payments")
    assert (failed.status_code, failed.json()["name"]) == (409, "BranchFailed")
    aborted(pair, work, account)


def test_the_agent_dies_before_it_prepares(pair: Pair) -> None:
    account = pair.account()
    work, _ = both(pair, account)
    pair.b.end(signal.SIGKILL)
    assert aborted(pair, work, account)["participant"] == "payments"


def test_an_agent_that_was_restarted_has_lost_its_branch(pair: Pair) -> None:
    """Broken if what was written before is lost, and what comes after is committed."""
    account = pair.account()
    work, joined = both(pair, account)
    pair.b.end(signal.SIGKILL)
    pair.b.start()
    assert joined.sql("select 1", participant="payments").status_code == 200
    aborted(pair, work, account)


class Held:
    """A commit that waits in the first phase: the agent's branch is prepared, the owner's is not yet."""

    def __init__(self, pair: Pair, work: Work) -> None:
        self.answer: httpx.Response | None = None
        self._pair, self._work = pair, work
        self._lock = psycopg.connect(pair.databases["orders"], autocommit=True)
        self._lock.execute("select pg_advisory_lock(77)")
        self._thread = threading.Thread(target=self._commit, daemon=True)

    def _commit(self) -> None:
        with contextlib.suppress(httpx.HTTPError):  # the owner was killed
            self.answer = self._work.commit()

    def begin(self) -> None:
        self._thread.start()
        gid = f"select count(*) from pg_prepared_xacts where gid like '%:{self._work.id}:%'"
        eventually(self._pair.databases["payments"], gid, 1)

    def end(self) -> httpx.Response | None:
        self._lock.close()
        self._thread.join(60)
        return self.answer


@contextmanager
def held(pair: Pair, account: int) -> Iterator[tuple[Held, Work]]:
    with psycopg.connect(pair.databases["orders"], autocommit=True) as admin:
        admin.execute(SLOW.encode())
    work, joined = pair.begin()
    work.run(TAKE.format(account))
    work.run("insert into slow values (1)")
    given(joined, account)
    holds = Held(pair, work)
    try:
        holds.begin()
        yield holds, joined
    finally:
        holds.end()


def test_the_agent_dies_after_it_has_prepared(pair: Pair) -> None:
    """Its branch stands in the database, and counts."""
    account = pair.account()
    with held(pair, account) as (commit, _):
        pair.b.end(signal.SIGKILL)
        answer = commit.end()
    assert answer is not None
    assert (answer.status_code, answer.json()["outcome"]) == (200, "committed"), answer.text
    assert pair.balances(account) == [90, 110]


def test_the_owner_dies_after_the_agent_has_prepared(pair: Pair) -> None:
    """And before it has decided: recovery rolls the agent's branch back."""
    account = pair.account()
    with held(pair, account) as (commit, joined):
        pair.a.end(signal.SIGKILL)
        commit.end()
    end = time.monotonic() + 60
    while (state := joined.show()["state"]) != "aborted":
        assert state == "unknown"
        assert time.monotonic() < end
        time.sleep(0.1)
    for dsn in pair.databases.values():
        eventually_none_prepared(dsn)
    assert pair.balances(account) == [100, 100]


def test_the_owner_dies_before_the_agent_is_asked(pair: Pair) -> None:
    """The branch ends at the agent's deadline, though nobody gives an order."""
    account = pair.account()
    work, joined = pair.begin(timeout_ms=6000)
    work.run(TAKE.format(account))
    given(joined, account)
    pair.a.end(signal.SIGKILL)
    eventually(pair.databases["payments"], IN_TRANSACTION, 0)
    assert pair.balances(account) == [100, 100]


def test_the_agents_deadline_passes_before_the_owner_commits(pair: Pair, ledger: str, tmp_path: Path) -> None:
    """Broken if the owner commits the other half."""
    account = pair.account()
    more = "[participants.payments.sidecar]\nsql = true"
    with staged(tmp_path, pair.databases, ledger, more, reachable=True, timeout_max_s=1.0) as hasty:
        work = pair.a.tcp("shop").begin()
        work.run(TAKE.format(account))
        joined = Work(hasty.tcp("shop", **{"Undoubt-Transaction": work.join}), work.id)
        given(joined, account)
        end = time.monotonic() + 20
        # Statements keep the database from ending the session, which has been idle for too long otherwise.
        while (late := joined.sql("select 1", participant="payments")).status_code == 200:
            assert time.monotonic() < end
        assert (late.status_code, late.json()["name"]) == (409, "BranchFailed"), late.text
        eventually(pair.databases["payments"], IN_TRANSACTION, 0)
        assert joined.sql("select 1", participant="payments").json()["name"] == "BranchFailed"
        assert work.show()["state"] == "active"
        assert aborted(pair, work, account)["participant"] == "payments"


def test_only_the_owner_orders(pair: Pair) -> None:
    """Broken if a client of the agent's sidecar can end a branch of others."""
    account = pair.account()
    work, _ = both(pair, account)
    for client in (pair.b.tcp("shop"), pair.b.tcp("peer"), pair.b.unix()):
        for verb in ("prepare", "rollback"):
            answer = client.post(f"{work.path}/agents/2/{verb}", {"secret": "x" * 43})
            assert (answer.status_code, answer.json()["name"]) == (404, "NoSuchBranch"), answer.text
    assert pair.b.tcp(None).post(f"{work.path}/agents/2/prepare", {"secret": "x" * 43}).status_code == 401
    assert work.commit().status_code == 200
    assert pair.balances(account) == [90, 110]


def test_an_agent_is_called_where_the_ledger_says(pair: Pair, ledger: str, listener: Listener) -> None:
    """Broken if who joins makes the owner's sidecar call an address, with its token."""

    async def named() -> str:
        opened = await open_ledger(LedgerSettings(url=ledger))
        try:
            session = await opened.open_session(session_name(listener.url, "x"), 60.0)
            return f"{session.id}-{session.nonce}"
        finally:
            await opened.close()

    work, _ = pair.begin()
    work.run("select 1")
    peer = pair.a.tcp("peer", **{"Undoubt-Transaction": work.join})
    for session in (asyncio.run(named()), "1-0123456789abcdef", "x", listener.url):
        body = {"participant": "payments", "session": session, "secret": "x" * 43}
        answer = peer.post(f"{work.path}/agents", body)
        assert (answer.status_code, answer.json()["name"]) == (409, "NoAgent"), answer.text
    assert work.commit().status_code == 200
    assert listener.connections == 0


def test_a_forged_capability_begins_no_branch_and_enters_none(pair: Pair) -> None:
    account = pair.account()
    work, _ = both(pair, account)
    forged = pair.joined(work, header=work.join[:-6] + "AAAAAA")
    answer = forged.sql("select 1", participant="payments")
    assert (answer.status_code, answer.json()["name"]) == (403, "CapabilityForged"), answer.text
    assert len(work.show()["branches"]) == 2
    assert work.commit().status_code == 200


@pytest.mark.parametrize("own", [True, False])
def test_where_the_owner_runs_statements_the_agent_does_not(pair: Pair, own: bool) -> None:
    """Two branches of one transaction in one database would wait for one another."""
    account = pair.account()
    work, joined = pair.begin()
    if own:
        work.run(TAKE.format(account))
    joined.run(GIVE.format(account))
    assert [each["run_by"] for each in work.show()["branches"]] == ["sidecar" if own else "agent"]
    assert work.commit().status_code == 200
    assert pair.balances(account) == [100 if own else 110, 100]


class Unprepared:
    """Stands for what the database shows of a branch that is not prepared."""

    gid = Gid("aaaaaaaaaa", Protocol.TWO_PHASE, TxId(1, "0123456789abcdef", 1), 1, "payments")

    async def prepare(self) -> PrepareResult:
        raise PrepareUnanswered(BranchFailed("payments", "it is not prepared"))


class Liar:
    """Stands for an agent that says that all is done."""

    async def order(self, gid: Gid, verb: str) -> None:
        return None


async def test_an_agent_is_not_believed_that_it_has_prepared() -> None:
    branch = AgentBranch(cast(AnnouncedBranch, Unprepared()), cast(Agent, Liar()))
    with pytest.raises(PrepareUnanswered, match="not prepared"):
        await branch.prepare()
