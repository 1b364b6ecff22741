"""Tests as an application has them: ``manage.py test --pattern cases.py``. Two classes, so that
``--parallel`` gives each a process and databases of its own."""

from __future__ import annotations

import pytest
from django.db import connections, transaction
from django.test import TestCase, TransactionTestCase, tag

from tests.undoubt.integrations.django.project.shop.models import Thing
from undoubt.integrations.django import atomic, coordinator, guard, publish

BOTH = ["default", "payments"]


def place(item: str) -> None:
    for alias in BOTH:
        Thing.objects.using(alias).create(item=item)


def items() -> list[list[str]]:
    return [[each.item for each in Thing.objects.using(alias).order_by("item")] for alias in BOTH]


def messages() -> int:
    with connections["default"].cursor() as cursor:
        cursor.execute("select count(*) from undoubt.undoubt_outbox")
        return int(cursor.fetchone()[0])


class Commits(TransactionTestCase):  # type: ignore[misc]
    databases = BOTH

    def test_both_commit(self) -> None:
        told: list[str] = []
        with atomic(using=BOTH):
            place("a lamp")
            transaction.on_commit(lambda: told.append("committed"))
        assert items() == [["a lamp"], ["a lamp"]]
        assert told == ["committed"]

    def test_neither_commits(self) -> None:
        with pytest.raises(ZeroDivisionError), atomic(using=BOTH):
            place("a lamp")
            raise ZeroDivisionError
        assert items() == [[], []]


@tag("one")
class CommitsInOne(TransactionTestCase):  # type: ignore[misc]
    databases = BOTH[:1]

    def test_it_commits(self) -> None:
        with atomic(using=BOTH[:1]):
            Thing.objects.using(BOTH[0]).create(item="a lamp")
        assert Thing.objects.using(BOTH[0]).count() == 1


class Uses(TransactionTestCase):  # type: ignore[misc]
    databases = BOTH

    def test_messages_and_locks(self) -> None:
        before = messages() if self._has_tables() else 0
        with coordinator().lock("shop", timeout=10) as lock, atomic(using=BOTH):
            guard(lock, "default")
            publish("default", {"item": "a lamp"})
            place("a lamp")
        assert (items(), messages()) == ([["a lamp"], ["a lamp"]], before + 1)

    def _has_tables(self) -> bool:
        with connections["default"].cursor() as cursor:
            cursor.execute("select to_regclass('undoubt.undoubt_outbox')")
            return cursor.fetchone()[0] is not None


class RollsBack(TestCase):  # type: ignore[misc]
    databases = BOTH

    def test_it_is_a_savepoint(self) -> None:
        with atomic(using=BOTH):
            place("a lamp")
        assert items() == [["a lamp"], ["a lamp"]]
