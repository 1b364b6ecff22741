"""undoubt with its ledger on three nodes, by each of its commit protocols."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import undoubt
import undoubt.sync
from undoubt.bench.contenders.product import Product, ProductInThreads, configuration
from undoubt.bench.contract import DATABASES, AsyncContender, Places, SyncContender
from undoubt.participants.postgres import schema
from undoubt.participants.settings import ParticipantSettings


@contextlib.asynccontextmanager
async def two_phase(places: Places) -> AsyncIterator[AsyncContender]:
    async with _connected(places, "2pc") as contender:
        yield contender


@contextlib.asynccontextmanager
async def three_phase(places: Places) -> AsyncIterator[AsyncContender]:
    await _migrate(places)
    async with _connected(places, "3pc") as contender:
        yield contender


@contextlib.asynccontextmanager
async def paxos(places: Places) -> AsyncIterator[AsyncContender]:
    async with _connected(places, "paxos") as contender:
        yield contender


@contextlib.asynccontextmanager
async def last_agent(places: Places) -> AsyncIterator[AsyncContender]:
    """The agent is the second database."""
    await _migrate(places)
    async with _connected(places, "last") as contender:
        yield contender


async def _migrate(places: Places) -> None:
    for name, dsn in zip(DATABASES, places.dsns, strict=True):
        await schema.migrate(name, ParticipantSettings(dsn=dsn))


@contextlib.asynccontextmanager
async def _connected(places: Places, protocol: str) -> AsyncIterator[AsyncContender]:
    settings = configuration(places, {"url": places.cluster}, protocol)
    async with undoubt.connect(settings) as coordinator:
        yield Product(coordinator, places.first_row)


@contextlib.contextmanager
def two_phase_sync(places: Places) -> Iterator[SyncContender]:
    with undoubt.sync.connect(configuration(places, {"url": places.cluster})) as coordinator:
        yield ProductInThreads(coordinator, places.first_row)
