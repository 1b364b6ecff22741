"""Idle connections of the PostgreSQL ledger that a firewall has forgotten, or the server has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from tests.coordinator.ledger.postgres_stage import BRANCHES, opened, settings_for
from tests.coordinator.ledger.signing import Signing
from tests.participants.proxy import Proxy
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.postgres import connections
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision

COUNT = connections.IDLE_MAX


@pytest.fixture
async def proxy(database: str) -> AsyncIterator[Proxy]:
    async with Proxy(database) as found:
        yield found


@pytest.fixture
def settings(proxy: Proxy) -> LedgerSettings:
    return settings_for(proxy.dsn, request_timeout_s=6.0)


@pytest.fixture
async def ledger(settings: LedgerSettings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Signing]:
    monkeypatch.setattr(connections, "PROBE_AFTER_S", 0.0)  # else the test would have to wait for it
    monkeypatch.setattr(connections, "PROBE_S", 0.5)
    await maintenance.init(settings)
    async with opened(settings) as found:
        yield found


async def idle(ledger: Any) -> list[Any]:
    """As many connections as are kept, none of them in use."""
    await asyncio.gather(*(ledger.unfinished() for _ in range(2 * COUNT)))
    lines = list(ledger._connections._idle)
    assert len(lines) == COUNT
    return lines


async def test_connections_that_a_firewall_has_forgotten(ledger: Any, proxy: Proxy) -> None:
    """Broken if a decision is not answered for them, or one for each of them."""
    session = await ledger.open_session("test", 10)
    lines = await idle(ledger)
    proxy.forget()
    assert await ledger.decide(session.txid(1), Decision.COMMIT, BRANCHES) is Decision.COMMIT
    assert all(line.broken for line in lines), "the others would cost the next calls their time"
    assert await ledger.decide(session.txid(2), Decision.COMMIT, BRANCHES) is Decision.COMMIT


async def test_calls_at_once_after_the_silence(ledger: Any, proxy: Proxy) -> None:
    session = await ledger.open_session("test", 10)
    await idle(ledger)
    proxy.forget()
    answers = [ledger.decide(session.txid(seq), Decision.COMMIT, BRANCHES) for seq in range(1, 9)]
    assert set(await asyncio.gather(*answers)) == {Decision.COMMIT}


async def test_connections_that_the_server_has_ended(
    ledger: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``idle_session_timeout``: found by the probe, or by the statement itself."""
    for probe_after_s in (0.0, 600.0):
        monkeypatch.setattr(connections, "PROBE_AFTER_S", probe_after_s)
        lines = await idle(ledger)
        for line in lines:
            await line.run("set idle_session_timeout = '50ms'", {})
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as watch:
            pids = [line._driver.info.backend_pid for line in lines]
            there = "select count(*) from pg_stat_activity where pid = any(%s)"
            while await (await watch.execute(there, (pids,))).fetchone() != (0,):
                await asyncio.sleep(0.005)
        assert await ledger.unfinished() == []
