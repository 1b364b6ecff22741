"""What keys and presses do, and what the page tells of it."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import pytest
from msgspec.structs import replace
from playwright.async_api import Browser, Route, expect

from tests.undoubt.console.browser import opened
from tests.undoubt.console.rig import Rig
from tests.undoubt.sidecar.stage import token
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.acting import new_act
from undoubt.serve.console import app as console_app
from undoubt.serve.console.settings import ConsoleSettings


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


async def test_an_act_that_is_under_way_is_told_and_closes_its_own_dialog(one: Rig, browser: Browser) -> None:
    """Broken if an act that goes on leaves no trace once its dialog is closed, or if its answer takes the
    dialog of another transaction away, with what was written there."""
    answers = asyncio.Event()

    async def hold(route: Route) -> None:
        await answers.wait()
        await route.continue_()

    for seq in (1, 2):
        await one.prepared(seq)
    first, second = (str(one.session.txid(seq)) for seq in (1, 2))
    async with opened(browser, one.base) as seen:
        await seen.page.route("**/v1/console/resolve", hold)
        await seen.sign_in(token("operator"))
        dialog = seen.page.get_by_role("dialog")
        await seen.go(f"tx/{first}")
        await seen.page.get_by_role("button", name="End this transaction").click()
        await dialog.get_by_label("Roll back all prepared branches").check()
        for flag in await dialog.get_by_role("checkbox").all():
            await flag.check()
        await dialog.get_by_label("Type the id").fill(first)
        await dialog.get_by_role("button", name="Do it").click()
        await expect(dialog).to_contain_text("This is under way.")
        await expect(dialog.get_by_role("button", name="Cancel")).to_have_count(0)
        await expect(dialog.get_by_label("Type the id")).to_be_disabled()
        await seen.page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        await expect(seen.page.locator("#acting")).to_contain_text("is under way since")
        await expect(seen.page.get_by_role("button", name="End this transaction")).to_have_count(0)
        await seen.go(f"tx/{second}")
        await seen.page.get_by_role("button", name="End this transaction").click()
        await dialog.get_by_label("Why").fill("half written")
        answers.set()
        await expect(seen.page.locator("#said")).to_contain_text(f"on the page of transaction {first}")
        await expect(dialog).to_contain_text(second)
        await expect(dialog.get_by_label("Why")).to_have_value("half written")
        await dialog.get_by_role("button", name="Cancel").click()
        await seen.go(f"tx/{first}")
        await expect(seen.page.locator("#acting")).to_have_count(0)
        await expect(seen.page.locator("#answer")).to_contain_text("branch 1 in orders: done")
        assert seen.errors == []


HASTE = """
{
  const timeout = AbortSignal.timeout;
  AbortSignal.timeout = (most_ms) => timeout.call(AbortSignal, most_ms / 1000);
}
"""


async def test_an_act_without_an_answer_is_said_to_have_none(one: Rig, browser: Browser) -> None:
    """Broken if a server that is silent leaves the dialog at work without end."""
    await one.prepared(1)
    txid = str(one.session.txid(1))
    async with opened(browser, one.base) as seen:
        await seen.page.add_init_script(HASTE)
        await seen.page.reload()
        await seen.page.route("**/v1/console/resolve", lambda _: None)
        await seen.sign_in(token("operator"))
        await seen.go(f"tx/{txid}")
        await seen.page.get_by_role("button", name="End this transaction").click()
        dialog = seen.page.get_by_role("dialog")
        await dialog.get_by_label("Roll back all prepared branches").check()
        for flag in await dialog.get_by_role("checkbox").all():
            await flag.check()
        await dialog.get_by_label("Type the id").fill(txid)
        await dialog.get_by_role("button", name="Do it").click()
        await expect(seen.page.locator("#answer")).to_contain_text("No answer in 2 min 0 s")
        await expect(dialog).to_be_hidden()


async def test_an_act_that_the_ledger_interrupts_is_not_called_undone(one: Rig, browser: Browser) -> None:
    """Broken if "Not done" is said of an act that has ended one branch before the ledger fell silent."""
    await one.prepared(1)
    txid = str(one.session.txid(1))
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("operator"))
        await seen.go(f"tx/{txid}")
        await seen.page.get_by_role("button", name="End this transaction").click()
        dialog = seen.page.get_by_role("dialog")
        await dialog.get_by_label("Roll back all prepared branches").check()
        await dialog.get_by_label("Type the id").fill(txid)
        true = one.ledger.decide

        async def decide(*arguments: Any, **named: Any) -> NoReturn:
            await true(*arguments, **named)
            raise LedgerUnavailable("no quorum")

        one.ledger.decide = decide  # type: ignore[method-assign]
        await dialog.get_by_role("button", name="Do it").click()
        answer = seen.page.locator("#answer")
        await expect(answer).to_contain_text("No quorum: whether it was done is not known.")
        await expect(seen.page.locator("#said")).to_contain_text("It is not known whether it was done.")


async def test_what_was_pressed_is_seen_to_have_happened(one: Rig, browser: Browser) -> None:
    """Broken if only a screen reader is told that an id was copied, or that doctor checks again."""
    txid = str(await one.decided(1))
    checking = asyncio.Event()

    async def hold(route: Route) -> None:
        await checking.wait()
        await route.continue_()

    async with opened(browser, one.base, permissions=["clipboard-read", "clipboard-write"]) as seen:
        await seen.page.route("**/v1/console/doctor", hold)
        await seen.sign_in(token("watcher"))
        toast = seen.page.locator("#toast")
        await expect(toast).to_be_hidden()
        await seen.page.get_by_role("button", name="Check again").click()
        await expect(toast).to_have_text("Checking…")
        await expect(toast).to_be_in_viewport()
        await expect(seen.page.get_by_role("button", name="Checking…")).to_be_visible()
        checking.set()
        await expect(toast).to_contain_text("Checked")
        await expect(seen.page.get_by_role("button", name="Check again")).to_be_visible()
        await seen.go(f"tx/{txid}")
        await seen.page.get_by_role("heading").get_by_role("button", name=f"Copy {txid}").click()
        await expect(toast).to_have_text(f"Copied: {txid}")
        assert await seen.page.evaluate("navigator.clipboard.readText()") == txid
        assert await seen.violations() == []


async def test_a_token_that_expires_keeps_what_was_written(
    one: Rig, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if an operator who writes why, and reads what is recorded, has to begin again."""
    monkeypatch.setattr(console_app, "RECHECK_S", 0.0)
    await one.prepared(1)
    txid = str(one.session.txid(1))
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("operator"))
        await seen.go(f"tx/{txid}")
        await seen.page.get_by_role("button", name="End this transaction").click()
        dialog = seen.page.get_by_role("dialog")
        await dialog.get_by_label("Why").fill("half written")
        await dialog.get_by_label("Type the id").fill(txid)
        one.doorkeeper.reload(ConsoleSettings().server)
        await expect(seen.page.get_by_role("alert")).to_contain_text("What you have written")
        await expect(seen.page.get_by_label("Token")).to_be_focused()
        one.doorkeeper.reload(one.settings.console.server)
        await seen.sign_in(token("operator"))
        await expect(dialog.get_by_label("Why")).to_have_value("half written")
        await expect(dialog.get_by_label("Type the id")).to_have_value(txid)


async def test_acts_of_one_moment_are_all_listed(one: Rig, browser: Browser) -> None:
    """Broken if the audit shows one of two acts that were recorded in the same millisecond."""
    act = new_act("indoubt forget", "the same", "first")
    for note in ("first", "second"):
        await one.ledger.record_act(replace(act, id=f"act {note}", note=note))
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("audit")
        rows = seen.page.locator("#rows-audit [data-key]")
        await expect(rows).to_have_count(2)
        for note in ("first", "second"):
            await expect(rows.filter(has_text=note)).to_have_count(1)
