"""Messages that a block publishes are in the outbox exactly if it has committed; and it guards locks."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connections, transaction
from django.test import TestCase

import undoubt
from tests.undoubt.integrations.django.models import Order
from tests.undoubt.integrations.django.test_django import told_by
from tests.undoubt.integrations.django.urls import BOTH, write
from tests.undoubt.integrations.web.shop import NOBODY, Shop
from undoubt.errors import ParticipantRefused, StaleLock, UsageError
from undoubt.integrations.django import atomic, coordinator, guard, publish
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings
from undoubt.sync.lock import Lock


@pytest.fixture
def migrated(shop: Shop) -> Shop:
    """Its databases have an outbox."""
    for name, dsn in shop.dsns.items():
        asyncio.run(migrate(name, ParticipantSettings(dsn=dsn)))
    return shop


def messages(shop: Shop, name: str = "orders") -> list[tuple[Any, ...]]:
    return shop.rows(name, "select topic, key, payload, dedupe_id from undoubt.undoubt_outbox order by id")


def test_a_message_commits_with_its_block(migrated: Shop) -> None:
    with atomic(using=BOTH):
        first = publish("orders", {"n": 1}, topic="placed", key="ada")
        write(1)
        second = publish("payments", "two")
        assert messages(migrated) == []
    assert messages(migrated) == [("placed", "ada", b'{"n":1}', first)]
    assert messages(migrated, "payments") == [("payments", None, b"two", second)]
    assert migrated.ids() == ([1], [1])


def test_a_message_goes_with_what_is_rolled_back(migrated: Shop) -> None:
    """A receiver would be told of an order that nobody has placed."""
    with pytest.raises(undoubt.TransactionAborted), atomic(using=BOTH):
        publish("orders", "never")
        write(1, NOBODY)
    with pytest.raises(ZeroDivisionError), atomic(using=BOTH):
        publish("orders", "never")
        raise ZeroDivisionError
    with atomic(using=BOTH):
        with pytest.raises(ZeroDivisionError), atomic(using=["orders"]):
            publish("orders", "never")
            raise ZeroDivisionError
        with transaction.atomic(using="orders"):
            publish("orders", "kept")
    assert [row[2] for row in messages(migrated)] == [b"kept"]


def test_the_alias_of_a_participant_with_another_name(
    migrated: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings, "sales", connections.settings["orders"])
    monkeypatch.setitem(settings.UNDOUBT, "participants", {"sales": "orders"})
    with atomic(using=["sales"]):
        publish("sales", "x")
    connections["sales"].close()
    del connections["sales"]
    assert [row[:3] for row in messages(migrated)] == [("orders", None, b"x")]


def test_what_cannot_be_published_changes_nothing(migrated: Shop) -> None:
    """The block goes on, and commits."""
    with atomic(using=["orders"]):
        for arguments in (("orders", object()), ("payments", "x"), (7, "x")):
            with pytest.raises(UsageError):
                publish(*arguments)
        Order.objects.using("orders").create(id=1)
    assert (messages(migrated), migrated.ids()) == ([], ([1], []))


def test_nothing_is_published_outside_a_block(migrated: Shop) -> None:
    """It would be delivered whatever becomes of the caller's work."""
    with pytest.raises(UsageError, match=r"inside a block of undoubt's atomic"):
        publish("orders", "x")
    with transaction.atomic(using="orders"), pytest.raises(UsageError, match=r"undoubt's atomic"):
        publish("orders", "x")
    assert messages(migrated) == []


def test_a_database_without_an_outbox_says_so(shop: Shop) -> None:
    """The message would be lost."""
    with pytest.raises(ParticipantRefused, match="undoubt participants migrate orders"), atomic(using=BOTH):
        publish("orders", "x")


def test_the_timeout_is_told_while_it_waits_for_another_ones_key(migrated: Shop) -> None:
    """Broken if the caller reads that a statement was cancelled, and no reason."""
    with psycopg.connect(migrated.dsns["orders"]) as other:
        other.execute("select undoubt.publish('other', 'orders', 'ada', 'x', '{}')")
        with pytest.raises(undoubt.TransactionAborted, match="timeout"), atomic(using=BOTH, timeout=1.0):
            publish("orders", "waits", key="ada")
        other.rollback()
    assert messages(migrated) == []


def test_a_testcase_publishes_nothing(migrated: Shop) -> None:
    """Its block never commits; but a wrong call fails there as it would in production."""
    found: list[str] = []

    class Case(TestCase):  # type: ignore[misc]
        databases = frozenset(BOTH)

        def runTest(self) -> None:
            with atomic(using=BOTH):
                write(1)
                found.append(publish("orders", "x"))
                with atomic(using=["orders"]), pytest.raises(UsageError):
                    publish("orders", object())
                found.append(publish("orders", "y"))
            with atomic(using=["orders"]), pytest.raises(UsageError, match="outermost"):
                atomic(using=BOTH).__enter__()
            with pytest.raises(UsageError, match=r"undoubt's atomic"):
                publish("orders", "x")

    assert told_by(Case()) == ([], [], 1)
    assert found == ["", ""]
    assert messages(migrated) == []


def test_a_stale_holder_of_a_lock_commits_nothing(migrated: Shop) -> None:
    """It would write over what the next holder has written."""
    opened = coordinator()
    with opened.lock("job") as lock:
        with atomic(using=BOTH):
            guard(lock, "orders")
            write(1)
        later = f"select undoubt.guard_lock('{opened.engine.ledger.ledger_id}', 'job', {lock.token + 1})"
        migrated.rows("orders", later)
        with pytest.raises(StaleLock), atomic(using=BOTH):
            write(2)
            guard(lock, "orders")
        with pytest.raises(UsageError, match="name it there"), atomic(using=["payments"]):
            guard(lock, "orders")
        with pytest.raises(UsageError, match=r"undoubt's atomic"):
            guard(lock, "orders")
    assert migrated.ids() == ([1], [1])


def test_a_guard_in_a_nested_block_that_is_undone(migrated: Shop) -> None:
    """The rest of the block would be written beside the next holder."""
    opened = coordinator()

    def program(lock: Lock, number: int) -> None:
        with atomic(using=BOTH):
            with pytest.raises(ZeroDivisionError), transaction.atomic(using="orders"):
                guard(lock, "orders")
                raise ZeroDivisionError
            if number == 2:
                ledger = opened.engine.ledger.ledger_id
                migrated.rows("orders", f"select undoubt.guard_lock('{ledger}', 'job', {lock.token + 1})")
            write(number)

    with opened.lock("job") as lock:
        program(lock, 1)
        with pytest.raises(undoubt.TransactionAborted) as aborted:
            program(lock, 2)
    assert isinstance(aborted.value.cause, StaleLock)
    assert migrated.ids() == ([1], [1])
