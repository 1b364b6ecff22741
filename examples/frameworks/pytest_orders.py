"""Tests of an application with the plugin of undoubt: two real databases with its tables, a ledger, and a
crash at each step of a commit. Run: pytest pytest_orders.py"""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import undoubt.sync

TABLES = {
    "orders": "create table orders (id bigint generated always as identity primary key, item text not null)",
    "payments": """
        create table accounts (name text primary key, balance int not null check (balance >= 0));
        insert into accounts values ('ada', 100)""",
}


@pytest.fixture(scope="session")
def undoubt_schema() -> Callable[[str, str], None]:
    def migrate(name: str, dsn: str) -> None:  # or: run Alembic, or Django's migrate
        with psycopg.connect(dsn) as connection:
            connection.execute(TABLES[name].encode())

    return migrate


def place(settings: dict[str, Any], item: str, price: int) -> None:
    """What is tested."""
    with undoubt.sync.connect(settings) as coordinator, coordinator.transaction() as tx:
        tx.branch("orders").execute("insert into orders (item) values (%s)", (item,))
        payments = tx.branch("payments")
        payments.execute("update accounts set balance = balance - %s where name = 'ada'", (price,))


def state(databases: dict[str, str]) -> tuple[int, int]:
    """How many orders there are, and how much is left."""
    with psycopg.connect(databases["orders"]) as orders, psycopg.connect(databases["payments"]) as payments:
        placed = orders.execute("select count(*) from orders").fetchall()[0][0]
        left = payments.execute("select balance from accounts").fetchall()[0][0]
    return placed, left


def test_an_order_is_paid(undoubt_settings: dict[str, Any], undoubt_databases: dict[str, str]) -> None:
    place(undoubt_settings, "lamp", 15)
    assert state(undoubt_databases) == (1, 85)


def test_an_order_without_money_is_not_placed(
    undoubt_settings: dict[str, Any], undoubt_databases: dict[str, str]
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        place(undoubt_settings, "castle", 1000)
    assert state(undoubt_databases) == (0, 100)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("before_prepare", (0, 100)),
        ("before_decide", (0, 100)),
        ("after_decide", (1, 85)),
        ("before_finish", (1, 85)),
    ],
)
def test_a_crash_leaves_all_or_nothing(
    step: str,
    expected: tuple[int, int],
    crash_at: Callable[..., None],
    undoubt_settings: dict[str, Any],
    undoubt_databases: dict[str, str],
    undoubt_recover: Callable[[], None],
) -> None:
    crash_at(step, place, undoubt_settings, "lamp", 15)
    undoubt_recover()
    assert state(undoubt_databases) == expected
