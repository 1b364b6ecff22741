"""What keys and presses do, and what the page tells of it."""

from __future__ import annotations

import asyncio

from playwright.async_api import Browser, Route, expect

from tests.undoubt.console.browser import opened
from tests.undoubt.console.rig import Rig
from tests.undoubt.sidecar.stage import token


async def test_skipping_to_the_content_stays_on_the_page(one: Rig, browser: Browser) -> None:
    """Broken if the first link of a page, meant for keyboards, leads to another page."""
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("sessions")
        skip = seen.page.get_by_role("link", name="Skip to the content")
        await skip.focus()
        await seen.page.keyboard.press("Enter")
        await expect(seen.page.locator("#main")).to_be_focused()
        assert seen.page.url.endswith("#sessions")
        await expect(seen.page.get_by_role("heading", name="Sessions")).to_be_visible()
