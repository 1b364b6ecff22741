"""Threads, their statements and their transactions, on real servers."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import undoubt.sync
from tests.undoubt.sync.support import Background, until
from tests.undoubt.sync.test_ends import interrupt_main_thread, run
from undoubt.errors import DistributedDeadlock, TransactionAborted
from undoubt.participants.errors import BranchFailed, UsageError
from undoubt.participants.postgres.psycopg import session as psycopg_session


class Bank:
    """``account`` with two rows in ``orders`` and in ``payments``."""

    def __init__(self, databases: dict[str, str], folder: Path) -> None:
        self.dsns = databases
        for dsn in databases.values():
            with psycopg.connect(dsn) as connection:
                connection.execute("create table account (id int primary key, balance int not null)")
                connection.execute("insert into account values (1, 100), (2, 100)")
        self.coordinator = undoubt.sync.connect(
            {
                "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
                "participants": {name: {"dsn": dsn} for name, dsn in databases.items()},
                "recovery": {"deadlock_interval_s": 0.05},
            }
        )

    def add(self, tx: undoubt.sync.Transaction, name: str, row: int, amount: int) -> None:
        tx.branch(name).execute("update account set balance = balance + %s where id = %s", (amount, row))

    def transfer(self, tx: undoubt.sync.Transaction, amount: int = 1) -> None:
        self.add(tx, "orders", 1, -amount)
        self.add(tx, "payments", 1, amount)

    def ask(self, name: str, query: str) -> Any:
        with psycopg.connect(self.dsns[name]) as connection:
            row = connection.execute(query).fetchone()
            assert row is not None
            return row[0]

    def balances(self) -> dict[str, int]:
        return {name: self.ask(name, "select balance from account where id = 1") for name in self.dsns}

    def runs(self, what: str) -> bool:
        """Whether a statement that contains ``what`` is running in ``orders``."""
        query = (
            "select count(*) from pg_stat_activity where state = 'active' and datname = current_database()"
            f" and query like '%{what}%' and pid <> pg_backend_pid()"
        )
        return bool(self.ask("orders", query))


@pytest.fixture
def bank(databases: dict[str, str], tmp_path: Path) -> Iterator[Bank]:
    made = Bank(databases, tmp_path)
    yield made
    made.coordinator.close()


def test_a_transfer(bank: Bank) -> None:
    with bank.coordinator.transaction() as tx:
        assert isinstance(tx.branch("orders"), psycopg.Connection)
        assert tx.branch("orders") is tx.branch("orders")
        bank.transfer(tx, 30)
    assert bank.balances() == {"orders": 70, "payments": 130}


def test_a_statement_is_refused_after_the_end(bank: Bank) -> None:
    with bank.coordinator.transaction() as tx:
        orders = tx.branch("orders")
        bank.transfer(tx)
    with pytest.raises(UsageError, match="after the end of its branch"):
        orders.execute("select 1")


def test_a_swallowed_error_aborts_both(bank: Bank) -> None:
    with pytest.raises(TransactionAborted) as caught, bank.coordinator.transaction() as tx:
        bank.transfer(tx)
        with pytest.raises(psycopg.errors.DivisionByZero):
            tx.branch("payments").execute("select 1/0")
    assert isinstance(caught.value.cause, BranchFailed)
    assert bank.balances() == {"orders": 100, "payments": 100}


def test_a_statement_that_runs_at_the_timeout_is_cancelled(bank: Bank) -> None:
    """The interleaving: the thread is inside libpq while the engine dooms its transaction. Broken if the
    thread waits on, the statement goes on in the server, or the reason is lost."""
    aborted = pytest.raises(TransactionAborted, match="timeout")
    with aborted as caught, bank.coordinator.transaction(timeout=0.5) as tx:
        bank.transfer(tx)
        tx.branch("orders").execute("select pg_sleep(600)")
    assert isinstance(caught.value.cause, TimeoutError)
    until(lambda: not bank.runs("pg_sleep"))
    with bank.coordinator.transaction() as tx:
        bank.transfer(tx)
    assert bank.balances() == {"orders": 99, "payments": 101}


@pytest.mark.parametrize("cancelled", ["while it waits", "when it no longer waits"])
def test_a_deadlock_across_databases_ends(
    bank: Bank, cancelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if both threads wait for ever, or the victim's half is applied, or it is not run again.

    The cancellation of the victim's statement races with the other transaction's end, by which the statement
    succeeds: then only the end of the block can tell that the transaction was aborted.
    """
    both = threading.Barrier(2)
    one_is_done = threading.Event()
    calls: list[str] = []
    errors: list[psycopg.Error] = []
    if cancelled == "when it no longer waits":
        cancel = psycopg_session._cancel

        async def late(pgconn: Any) -> None:
            while not one_is_done.is_set():
                await asyncio.sleep(0.001)
            await cancel(pgconn)

        monkeypatch.setattr(psycopg_session, "_cancel", late)

    def work(tx: undoubt.sync.Transaction, first: str, second: str) -> None:
        calls.append(first)
        bank.add(tx, first, 2, 1)
        if calls.count(first) == 1:
            both.wait(30)
        try:
            bank.add(tx, second, 2, 1)
        except psycopg.Error as error:
            errors.append(error)
            raise

    def run_work(first: str, second: str) -> None:
        try:
            bank.coordinator.run(work, first, second)
        finally:
            one_is_done.set()  # also after a failure, or the late cancellation would wait for ever

    threads = [
        Background(lambda: run_work("orders", "payments")),
        Background(lambda: run_work("payments", "orders")),
    ]
    for thread in threads:
        thread.ended()
    assert len(calls) >= 3
    assert len(errors) <= (1 if cancelled == "while it waits" else 0)
    for name in bank.dsns:
        assert bank.ask(name, "select balance from account where id = 2") == 102


def test_the_victim_of_a_deadlock_is_told(bank: Bank) -> None:
    both = threading.Barrier(2)

    def work(first: str, second: str) -> None:
        with bank.coordinator.transaction() as tx:
            bank.add(tx, first, 2, 1)
            both.wait(30)
            bank.add(tx, second, 2, 1)

    threads = [
        Background(lambda: work("orders", "payments")),
        Background(lambda: work("payments", "orders")),
    ]
    told = []
    for thread in threads:
        try:
            thread.ended()
        except TransactionAborted as error:
            told.append(error.cause)
    [cause] = told
    assert isinstance(cause, DistributedDeadlock)


def test_commit_while_another_thread_is_in_a_statement(bank: Bank) -> None:
    """Broken if what that statement did, or will do, could be half of a commit."""
    tx = bank.coordinator.transaction().start()
    bank.transfer(tx)
    orders = tx.branch("orders")
    busy = Background(
        lambda: orders.execute("update account set balance = 0 where id = 2 and pg_sleep(600) is null")
    )
    until(lambda: bank.runs("pg_sleep"))
    with pytest.raises(TransactionAborted, match="still running"):
        tx.commit()
    with pytest.raises((psycopg.Error, UsageError)):
        busy.ended()
    assert bank.balances() == {"orders": 100, "payments": 100}
    until(lambda: not bank.runs("pg_sleep"))


def test_ctrl_c_in_a_statement(bank: Bank) -> None:
    """Broken if the interrupted thread's branch, or its locks, stay."""

    def interrupt() -> None:
        until(lambda: bank.runs("pg_sleep"))
        interrupt_main_thread()

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    interrupting = Background(interrupt)
    with pytest.raises(KeyboardInterrupt), bank.coordinator.transaction() as tx:
        bank.transfer(tx)
        tx.branch("orders").execute("select pg_sleep(600)")
    interrupting.ended()
    until(lambda: not bank.runs("pg_sleep"))
    with bank.coordinator.transaction(timeout=20) as tx:
        bank.transfer(tx)
    assert bank.balances() == {"orders": 99, "payments": 101}


def test_many_threads_lose_no_money(bank: Bank) -> None:
    def work() -> int:
        done = 0
        for number in range(10):
            try:
                with bank.coordinator.transaction() as tx:
                    bank.transfer(tx)
                    if number % 5 == 4:
                        raise ZeroDivisionError  # noqa: TRY301
            except ZeroDivisionError:
                continue
            done += 1
        return done

    done = sum(thread.ended() for thread in [Background(work) for _ in range(8)])
    assert done == 64
    assert bank.balances() == {"orders": 100 - done, "payments": 100 + done}


def test_a_fork_leaves_its_parents_connections(databases: dict[str, str], tmp_path: Path) -> None:
    """Broken if a child that ends says goodbye to the server on its parent's connection."""
    (tmp_path / "dsn").write_text(databases["orders"])
    assert run("forks_in_a_branch", tmp_path).splitlines() == ["child WrongProcess", "parent not_recorded"]
    with psycopg.connect(databases["orders"]) as connection:
        assert connection.execute("select count(*) from mark").fetchone() == (1,)
