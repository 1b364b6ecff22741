"""A Redis server of the tests' own, and a shop for each test."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.ports import free_ports
from tests.undoubt.integrations.web.shop import Shop

START_S = 30.0


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of Debian's package ``redis-server``."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("redis-server is missing")
        pytest.skip("redis-server is missing: apt install redis-server")
    (port,) = free_ports(1)
    folder = tmp_path_factory.mktemp("redis")
    words = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port)
        end = time.monotonic() + START_S
        while not _answers(client):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        client.close()
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture
def shop(databases: dict[str, str], tmp_path: Path) -> Shop:
    settings = {
        "ledger": {"url": f"sqlite:///{tmp_path / 'ledger.db'}"},
        "participants": {name: {"dsn": dsn} for name, dsn in databases.items()},
    }
    shop = Shop(databases, settings)
    shop.make_tables()
    return shop
