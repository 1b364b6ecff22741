"""What the page shows while databases are silent: nothing goes out of sight, and it says when it was so."""

from __future__ import annotations

import time
from dataclasses import replace

from playwright.async_api import Browser, expect

from tests.undoubt.console.browser import opened
from tests.undoubt.console.rig import Rig
from tests.undoubt.sidecar.stage import token
from undoubt.participants.contract import PreparedBranch
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Foreign, Gid


async def impostor(one: Rig, name: str = "orders") -> Gid:
    """A branch that its coordinator's session did not sign, prepared at a participant."""
    gid = next(gid for gid in one.gids(90) if gid.participant == name)
    false = replace(gid, tag="0" * 20)
    branch = await one.participants[name].begin(false, timeout_s=60.0)
    await branch.prepare()
    return false


def dies(one: Rig, *names: str) -> None:
    for name in names:
        one.participants[name].down = ParticipantUnavailable(name, "connection refused")


async def test_what_is_not_ours_stays_listed_when_its_database_dies(one: Rig, browser: Browser) -> None:
    """Broken if the page says that nothing else is prepared, of databases that do not answer."""
    false = await impostor(one)
    foreign = PreparedBranch(Foreign("of another program"), "someone", "payments", time.time(), 1.0)
    one.participants["payments"].foreign.append(foreign)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("impostors")
        box = seen.page.locator("#rows-impostors")
        await expect(box).to_have_attribute("aria-rowcount", "3")
        await expect(seen.page.locator("main [data-stale]")).to_have_count(0)
        repair = f"undoubt indoubt rollback {false} --participant orders"
        await expect(box.get_by_role("button", name=repair)).to_be_visible()
        dies(one, "orders", "payments")
        main = seen.page.locator("main")
        await expect(main).to_contain_text("Participant orders does not answer")
        await expect(main).to_contain_text("Participant payments does not answer")
        await expect(main).not_to_contain_text("Nothing else is prepared.")
        for name in (str(false), "of another program"):
            row = box.get_by_role("row").filter(has_text=name)
            await expect(row).to_contain_text("as of")
        await expect(main.locator("[data-stale]")).to_contain_text("as of")
        count = seen.page.get_by_role("navigation").get_by_role("link", name="Impostors")
        await expect(count).to_contain_text("1? impostors, some as of the last answer")
        await seen.go("overview")
        warning = main.get_by_text("1 impostor is prepared")
        await expect(warning).to_contain_text("This was so at")
        await expect(warning).to_contain_text("orders has not answered since")
        one.participants["orders"].down = one.participants["payments"].down = None
        await expect(warning).not_to_contain_text("This was so at")
        await expect(seen.page.locator("[data-stale]")).to_have_count(0)


async def test_nothing_is_said_of_a_database_that_never_answered(one: Rig, browser: Browser) -> None:
    """Broken if a page that was opened after a database died says that nothing is prepared there."""
    dies(one, "payments")
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("impostors")
        main = seen.page.locator("main")
        await expect(main).to_contain_text("Nothing else is prepared in the databases that answer.")
        await expect(main).to_contain_text("what is prepared there now is not known")
        await expect(main.locator("[data-stale]")).to_contain_text("not read yet")


async def test_branches_in_a_dead_database_still_need_somebody(one: Rig, browser: Browser) -> None:
    """Broken if the warning of old branches counts fewer once a database is silent, and does not say so."""
    for seq in (1, 2):
        await one.prepared(seq)
    for participant in one.participants.values():
        participant.since = time.time() - 900  # type: ignore[attr-defined]
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        main = seen.page.locator("main")
        await expect(main).to_contain_text("4 branches have been in doubt for more than 5 minutes.")
        dies(one, "payments")
        await expect(main).to_contain_text("Participant payments does not answer")
        warning = main.get_by_text("4 branches have been in doubt for more than 5 minutes.")
        await expect(warning).to_contain_text("2 of them at")
        await expect(warning).to_contain_text("payments has not answered since")


async def test_a_branch_in_a_dead_database_stays_in_the_table(one: Rig, browser: Browser) -> None:
    """Broken if a transaction looks like one of fewer branches once a database has died."""
    await one.prepared(1)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go(f"tx/{one.session.txid(1)}")
        rows = seen.page.get_by_role("region", name="Branches").get_by_role("row")
        await expect(rows).to_have_count(3)
        dies(one, "payments")
        await expect(seen.page.locator("main")).to_contain_text(
            "does not answer, and may have a branch of it"
        )
        row = rows.filter(has_text="payments")
        await expect(row).to_contain_text("no answer")
        await expect(row).to_contain_text("it was prepared there at")
