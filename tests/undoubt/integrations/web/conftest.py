"""Two databases on two servers, and the applications of all frameworks over them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import undoubt.connect
import undoubt.sync
from tests.undoubt.integrations.web import fastapi_app, flask_app, quart_app, starlette_app
from tests.undoubt.integrations.web.client import Application, Client
from tests.undoubt.integrations.web.shop import Shop

APPLICATIONS: dict[str, Application] = {
    "starlette": starlette_app.run,
    "fastapi": fastapi_app.run,
    "fastapi-threads": fastapi_app.run_threads,
    "fastapi-sessions": fastapi_app.run_sessions,
    "quart": quart_app.run,
    "flask": flask_app.run,
    "flask-coroutines": flask_app.run_coroutines,
}


@pytest.fixture
def shop(databases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """The coordinators that are opened from here on have its observer."""
    settings = {
        "ledger": {"url": f"sqlite:///{tmp_path / 'ledger.db'}"},
        "participants": {name: {"dsn": dsn} for name, dsn in databases.items()},
    }
    shop = Shop(databases, settings)
    shop.make_tables()
    observed = partial(undoubt.connect, observe=shop.observe, recover=False)
    monkeypatch.setattr("undoubt.integrations.asgi.connect", observed)
    monkeypatch.setattr(
        "undoubt.sync.connect", partial(undoubt.sync.connect, observe=shop.observe, recover=False)
    )
    return shop


@pytest.fixture(params=APPLICATIONS)
def client(request: pytest.FixtureRequest, shop: Shop) -> Iterator[Client]:
    with APPLICATIONS[request.param](shop) as client:
        yield client


@pytest.fixture(params=APPLICATIONS)
def last_client(request: pytest.FixtureRequest, shop: Shop) -> Iterator[Client]:
    """Its transactions commit by their last agent."""
    shop.make_last_agent("payments")
    with APPLICATIONS[request.param](shop) as client:
        yield client


@pytest.fixture
def hasty(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Its transactions have a short timeout, and commits wait no longer than that for an outcome."""
    monkeypatch.setattr("undoubt.coordinator.transaction.VOTING_GRACE_S", 0.0)
    shop.timeout_s = 1.0
    return shop


@pytest.fixture(params=APPLICATIONS)
def hasty_client(request: pytest.FixtureRequest, hasty: Shop) -> Iterator[Client]:
    with APPLICATIONS[request.param](hasty) as client:
        yield client
