"""Django with two databases, which are new ones for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import django
import pytest
from django.conf import settings
from django.db import connections

import undoubt.sync
from tests.undoubt.integrations.web.shop import Shop

ALIASES = ("orders", "payments")

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={
            "default": {},
            **{alias: {"ENGINE": "django.db.backends.postgresql", "NAME": "none"} for alias in ALIASES},
        },
        MIDDLEWARE=["undoubt.integrations.django.TellOutcome"],
        ROOT_URLCONF="tests.undoubt.integrations.django.urls",
    )
    django.setup()


def entry(dsn: str) -> dict[str, Any]:
    url = urlsplit(dsn)
    return {
        "NAME": url.path.removeprefix("/"),
        "USER": url.username,
        "PASSWORD": unquote(url.password or ""),
        "HOST": url.hostname,
        "PORT": url.port,
        "CONN_MAX_AGE": None,
    }


@pytest.fixture
def shop(databases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Django's connections lead to its databases, and ``settings.UNDOUBT`` to its coordinator."""
    configuration = {
        "ledger": {"url": f"sqlite:///{tmp_path / 'ledger.db'}"},
        "participants": {name: {"dsn": dsn} for name, dsn in databases.items()},
    }
    shop = Shop(databases, configuration)
    shop.make_tables()
    for alias in ALIASES:
        connections.settings[alias].update(entry(databases[alias]))
        monkeypatch.setitem(settings.DATABASES, alias, connections.settings[alias])
    with undoubt.sync.connect(configuration, observe=shop.observe, recover=False) as coordinator:
        monkeypatch.setattr(settings, "UNDOUBT", {"coordinator": coordinator}, raising=False)
        yield shop
        for alias in ALIASES:
            connections[alias].close()
            del connections[alias]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits wait for an outcome no longer than the transaction's timeout."""
    monkeypatch.setattr("undoubt.coordinator.transaction.VOTING_GRACE_S", 0.0)
