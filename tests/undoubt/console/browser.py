"""Opens pages of the console in Chromium, and listens to everything that a page must not do."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
]
WAIT_MS = 30_000
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def program() -> str | None:
    """Chromium's path; None: the one that Playwright has installed."""
    named = os.environ.get("UNDOUBT_TEST_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser")


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program(), args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


WATCH = """
window.__ran = [];
window.__refused = [];
document.addEventListener('securitypolicyviolation', (event) => {
  window.__refused.push(event.violatedDirective + ' ' + event.blockedURI);
});
window.planted = (where) => window.__ran.push(String(where));
window.alert = (text) => window.__ran.push(String(text));
"""


CLIPPED = """
(() => {
  const found = [];
  const tell = (why, node) => found.push(`${why}: ${node.textContent.trim().slice(0, 80)}`);
  const hides = (overflow) => overflow === 'hidden' || overflow === 'clip';
  for (const node of document.querySelectorAll('#app *')) {
    if (node.closest('.unseen, svg') || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const wide = node.scrollWidth > node.clientWidth + 1, tall = node.scrollHeight > node.clientHeight + 1;
    if ((wide && hides(style.overflowX)) || (tall && hides(style.overflowY))) tell('cut', node);
    if (wide && node.classList.contains('scroll')) tell('beside what is in sight', node);
  }
  const walker = document.createTreeWalker(document.getElementById('app'), NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    let box = text.parentElement;
    if (box.closest('.unseen, svg, option')) continue;
    while (getComputedStyle(box).display.startsWith('inline')) box = box.parentElement;
    range.selectNodeContents(text);
    const edge = box.getBoundingClientRect();
    const beside = (part) => part.width && (part.right > edge.right + 2 || part.left < edge.left - 2);
    if ([...range.getClientRects()].some(beside)) tell('beside its box', text);
  }
  for (const picture of document.querySelectorAll('figure svg')) {
    const edge = picture.getBoundingClientRect();
    const seen = [];
    for (const text of picture.querySelectorAll('text')) {
      const box = text.getBoundingClientRect();
      if (box.left < edge.left - 2 || box.right > edge.right + 2) tell('beside its picture', text);
      if (seen.some((other) => box.left < other.right - 2 && other.left < box.right - 2
        && box.top < other.bottom - 4 && other.top < box.bottom - 4)) tell('over another text', text);
      seen.push(box);
    }
    for (const mark of picture.querySelectorAll('.break, .decision')) {
      const line = mark.getBoundingClientRect();
      if (seen.some((box) => line.left < box.right - 1 && box.left < line.right - 1
        && line.top < box.bottom - 3 && box.top < line.bottom - 3)) tell('a mark is over a text', picture);
    }
  }
  return found;
})()
"""
"""The texts that cannot be read as a whole: cut by a box, beside a box or a picture, or over each other."""


@dataclass
class Opened:
    """One page. ``errors``: what it wrote as an error to its console."""

    page: Page
    base: str
    errors: list[str] = field(default_factory=list)

    def hear(self, said: ConsoleMessage) -> None:
        # A refused request is also an error of the console, which no page can keep silent.
        if said.type == "error" and not said.text.startswith("Failed to load resource"):
            self.errors.append(said.text)

    async def sign_in(self, token: str) -> None:
        await self.page.get_by_label("Token").fill(token)
        await self.page.get_by_role("button", name="Open the console").click()
        await self.live()

    async def live(self) -> None:
        await self.page.locator("#live", has_text="live").wait_for(timeout=WAIT_MS)

    async def go(self, place: str) -> None:
        await self.page.evaluate("(place) => { location.hash = place }", f"#{place}")
        await self.page.locator("main h2").wait_for(timeout=WAIT_MS)

    async def planted(self) -> list[str]:
        """Scripts that ran although no page may run them."""
        return list(await self.page.evaluate("window.__ran"))

    async def refused(self) -> list[str]:
        """Violations of the policy."""
        return list(await self.page.evaluate("window.__refused"))

    async def clipped(self) -> list[str]:
        return list(await self.page.evaluate(CLIPPED))

    async def violations(self) -> list[str]:
        """What axe-core finds."""
        found = await Axe().run(self.page, options={"runOnly": {"type": "tag", "values": RULES}})
        seen: list[dict[str, Any]] = found.response["violations"]
        return [f"{one['id']}: {node['html'][:160]}" for one in seen for node in one["nodes"]]


@asynccontextmanager
async def opened(
    browser: Browser, base: str, *, width: int = 1440, height: int = 900, dark: bool = False, **more: Any
) -> AsyncIterator[Opened]:
    """The console at ``base``, in a window of that size, before anybody has signed in."""
    context: BrowserContext = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        **more,
    )
    try:
        await context.add_init_script(WATCH)
        page = await context.new_page()
        one = Opened(page, base)
        page.on("console", one.hear)
        page.on("pageerror", lambda error: one.errors.append(str(error)))
        page.set_default_timeout(WAIT_MS)
        await page.goto(f"{base}/")
        yield one
    finally:
        await context.close()


async def photograph(page: Page, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=path, animations="disabled", full_page=True)
