"""A console of this process, and Chromium."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import Browser

from tests.undoubt.console.browser import chromium
from tests.undoubt.console.rig import Rig, rig


@pytest_asyncio.fixture
async def one() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as made:
        yield made
