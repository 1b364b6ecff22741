"""The page calls nothing current that is old, and nothing known that is not: slow networks, clocks that
differ, databases that are stopped, a silent ledger, waits that cannot be read."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from playwright.async_api import Browser, expect

from tests.undoubt.console.browser import opened
from tests.undoubt.console.rig import Rig
from tests.undoubt.console.slow_network import slow_network
from tests.undoubt.sidecar.stage import token
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.participants.contract import PreparedBranch
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.recovery.operator.resolve import Operator

LONG_MS = 90_000


async def test_what_a_slow_network_brings_late_is_not_live(one: Rig, browser: Browser) -> None:
    """Broken if state that was sent half a minute ago is called live: what arrives now may be old."""
    async with slow_network(one.base) as way, opened(browser, way.base) as seen:
        await seen.sign_in(token("watcher"))
        way.slow.set()
        live = seen.page.locator("#live")
        await expect(live).to_contain_text("slow connection: as of", timeout=LONG_MS)
        await expect(seen.page.locator("main [data-stale]").first).to_contain_text("as of")
        way.slow.clear()
        await expect(live).to_have_text("live", timeout=LONG_MS)


async def test_ages_stop_where_the_knowledge_ends(one: Rig, browser: Browser) -> None:
    """Broken if the age of a branch is counted on while nobody knows whether the branch is still there."""
    await one.prepared(1)
    async with slow_network(one.base) as way, opened(browser, way.base) as seen:
        await seen.sign_in(token("watcher"))
        await expect(seen.page.locator("#in-doubt")).to_have_text("2")
        way.cut()
        await expect(seen.page.locator("#live")).to_contain_text("disconnected", timeout=LONG_MS)
        ages = "[oldestOf(inDoubt()), age(known.beat.now - 1)]"  # of a branch, and of any other row
        first = await seen.page.evaluate(ages)
        await seen.page.wait_for_function(
            "(sent) => serverNow() - sent > 8", arg=await seen.page.evaluate("known.beat.now")
        )
        assert await seen.page.evaluate(ages) == first


async def test_an_age_is_not_that_of_another_clock(one: Rig, browser: Browser) -> None:
    """Broken if a database whose clock is an hour wrong makes a branch an hour older, or a new one."""

    def skewed(name: str, by_s: float, age_s: float) -> None:
        true = one.participants[name].in_doubt
        began = time.time()

        async def in_doubt() -> Sequence[PreparedBranch]:
            old = age_s + time.time() - began
            return [replace(each, prepared_at=time.time() - old + by_s, age_s=old) for each in await true()]

        one.participants[name].in_doubt = in_doubt  # type: ignore[method-assign]

    await one.prepared(1)
    skewed("orders", -3600.0, 1.0)
    skewed("payments", 7200.0, 1200.0)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        table = seen.page.get_by_role("table", name="In doubt by participant and age")
        await expect(table.get_by_role("row").filter(has_text="payments")).to_have_text("payments0010")
        row = table.get_by_role("row").filter(has_text="orders")
        await expect(row).to_have_text("orders1000")
        await expect(seen.page.locator("main")).to_contain_text("1 branch has been in doubt for more than")


async def test_a_stopped_database_does_not_answer(one: Rig, browser: Browser) -> None:
    """Broken if a database that was stopped is said to answer until its connections time out."""
    await one.prepared(1)
    goes_on = asyncio.Event()
    true = one.participants["orders"].in_doubt
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await expect(seen.page.locator("#in-doubt")).to_have_text("2")

        async def stopped() -> Sequence[PreparedBranch]:
            await goes_on.wait()
            return await true()

        one.participants["orders"].in_doubt = stopped  # type: ignore[method-assign]
        silent = "Participant orders does not answer: no answer within 5 s"
        await expect(seen.page.locator("main")).to_contain_text(silent, timeout=LONG_MS)
        await expect(seen.page.locator("#in-doubt")).to_have_text("1 at least")
        row = seen.page.get_by_role("table", name="Participants").get_by_role("row").filter(has_text="orders")
        await expect(row).to_contain_text("does not answer")
        await seen.go(f"tx/{one.session.txid(1)}")
        await expect(seen.page.locator("main")).to_contain_text("Asking the ledger and the databases")
        goes_on.set()
        await expect(seen.page.locator("main h3").first).to_have_text("What is known")
        await expect(seen.page.locator("main")).not_to_contain_text(silent, timeout=LONG_MS)


async def test_a_stopped_ledger_is_no_silence_of_the_databases(one: Rig, browser: Browser) -> None:
    """Broken if all databases are said to be silent because the ledger is, which is asked with each."""
    await one.prepared(1)
    goes_on = asyncio.Event()
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await expect(seen.page.locator("#in-doubt")).to_have_text("2")

        async def stopped(*_: object, **__: object) -> NoReturn:
            await goes_on.wait()
            raise LedgerUnavailable("it was stopped")

        for name in ("transactions", "info", "outcomes"):
            setattr(one.ledger, name, stopped)
        main = seen.page.locator("main")
        silent = "The ledger does not answer: no answer within 5 s"
        await expect(main).to_contain_text(silent, timeout=LONG_MS)
        await seen.page.wait_for_function(
            "() => serverNow() - known.beat.parts['participant orders'].at > 10"
        )
        await expect(main).not_to_contain_text("Participant orders does not answer")
        await expect(main.locator("[data-key=Participants] [data-stale]")).to_contain_text("as of")
        await expect(seen.page.get_by_label("Sections")).to_contain_text("as of the last reading")
        goes_on.set()
        await expect(main).to_contain_text("The ledger does not answer: it was stopped", timeout=LONG_MS)


async def test_a_branch_does_not_age_while_the_ledger_is_silent(one: Rig, browser: Browser) -> None:
    """Broken if a branch grows older on the page although the last reading of its database is long ago."""
    await one.prepared(1)
    true = one.ledger.outcomes

    async def fail(*_: object) -> NoReturn:
        raise LedgerUnavailable("no quorum")

    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await expect(seen.page.locator("#in-doubt")).to_have_text("2")
        await seen.go(f"tx/{one.session.txid(1)}")
        picture = seen.page.locator("figure svg")
        await expect(picture).not_to_have_attribute("aria-label", _has("not known since"))
        one.ledger.outcomes = fail  # type: ignore[assignment, method-assign]
        await expect(picture).to_have_attribute("aria-label", _has("not known since"), timeout=LONG_MS)
        first = await seen.page.evaluate("oldestOf(inDoubt())")
        await seen.page.wait_for_function(
            "(now) => serverNow() - now > 3", arg=await seen.page.evaluate("serverNow()")
        )
        assert await seen.page.evaluate("oldestOf(inDoubt())") == first
        one.ledger.outcomes = true  # type: ignore[method-assign]
        await expect(picture).not_to_have_attribute("aria-label", _has("not known since"), timeout=LONG_MS)


async def test_a_page_of_a_transaction_says_that_its_database_is_stopped(one: Rig, browser: Browser) -> None:
    """Broken if a branch is shown as prepared although nobody has answered for it since."""
    await one.prepared(1)
    goes_on = asyncio.Event()
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go(f"tx/{one.session.txid(1)}")
        main = seen.page.locator("main")
        rows = seen.page.get_by_role("region", name="Branches").get_by_role("row")
        await expect(rows.filter(has_text="orders").first).to_contain_text("prepared")
        await expect(main.locator("[data-stale=one]")).to_have_count(0)

        async def stopped() -> Sequence[PreparedBranch]:
            await goes_on.wait()
            return []

        one.participants["orders"].in_doubt = stopped  # type: ignore[method-assign]
        await expect(main).to_contain_text("Participant orders does not answer", timeout=LONG_MS)
        await expect(rows.filter(has_text="orders").first).to_contain_text("no answer")
        await expect(main.locator("[data-stale=one]")).to_contain_text("as of", timeout=LONG_MS)
        goes_on.set()


async def test_facts_stay_in_sight_while_the_ledger_is_silent(one: Rig, browser: Browser) -> None:
    """Broken if the page of a transaction has one line about an error instead of all that it had shown."""
    await one.prepared(1)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go(f"tx/{one.session.txid(1)}")
        main = seen.page.locator("main")
        await expect(main.get_by_role("heading", name="Explained").first).to_be_visible()

        async def fail(*_: object) -> NoReturn:
            raise LedgerUnavailable("no quorum")

        true = one.ledger.transaction
        one.ledger.transaction = fail  # type: ignore[assignment, method-assign]
        await expect(main).to_contain_text("What is true now is not known: no quorum", timeout=LONG_MS)
        await expect(main.get_by_role("heading", name="Explained").first).to_be_visible()
        await expect(main.locator("[data-stale=one]")).to_contain_text("as of")
        one.ledger.transaction = true  # type: ignore[method-assign]
        await expect(main.locator("[data-stale=one]")).to_have_count(0, timeout=LONG_MS)


async def test_waits_that_cannot_be_read_are_not_none(one: Rig, browser: Browser) -> None:
    """Broken if nobody is said to wait where the database does not let its waits be read."""
    await one.prepared(1)

    async def refused() -> NoReturn:
        raise ParticipantUnavailable("orders", "permission denied for view pg_locks")

    one.participants["orders"].waits = refused  # type: ignore[method-assign]
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        row = seen.page.get_by_role("table", name="Participants").get_by_role("row").filter(has_text="orders")
        await expect(row).to_contain_text("who waits is not known: permission denied")
        await expect(row.get_by_role("cell").nth(3)).to_have_text("?")
        await seen.go(f"tx/{one.session.txid(1)}")
        main = seen.page.locator("main")
        await expect(main).to_contain_text("Not known in orders: permission denied for view pg_locks.")
        await expect(main).to_contain_text("in the databases whose waits are known")


async def test_a_branch_that_was_prepared_or_ended_by_hand_is_not_at_work(one: Rig, browser: Browser) -> None:
    """Broken if the picture says that a branch is open and at work after its application has prepared it by
    a connection of its own, or an operator has committed it."""
    gids = one.gids(1)
    txid = str(gids[0].txid)
    traces = one.console.traces
    traces.note(txid, "begin")
    for gid in gids:
        traces.note(txid, "branch", gid.branch, gid.participant)
    await one.prepared(1)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go(f"tx/{txid}")
        picture = seen.page.locator("figure svg")
        await expect(picture).to_have_attribute("aria-label", _has("voted PREPARED, in doubt"))
        await expect(picture).not_to_have_attribute("aria-label", _has("open, at work for"))
        operator = Operator(one.ledger, one.console.participants)
        await operator.commit(gids[0], heuristic=True)
        await expect(picture).to_have_attribute("aria-label", _has("committed by an operator"))
        await expect(picture).not_to_have_attribute("aria-label", _has("open, at work for"))


def _has(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text))


async def test_a_search_that_hides_rows_is_in_sight(one: Rig, browser: Browser) -> None:
    """Broken if a list has no row because of a search that its field does not show."""
    await one.decided(1)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        await seen.page.get_by_label("Search").fill("no such thing")
        await expect(seen.page.locator("main")).to_contain_text("No transaction matches.")
        await seen.go("overview")
        await seen.go("transactions")
        await expect(seen.page.locator("main")).to_contain_text("No transaction matches.")
        await expect(seen.page.get_by_label("Search")).to_have_value("no such thing")


async def test_a_way_against_the_record_is_called_so(one: Rig, browser: Browser) -> None:
    """Broken if rolling back what is recorded as committed is told to be only unproved."""
    await one.prepared(1)
    await one.decided(1, finish=False)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("operator"))
        await seen.go(f"tx/{one.session.txid(1)}")
        await seen.page.get_by_role("button", name="End this transaction").click()
        way = seen.page.get_by_label("Roll back all prepared branches")
        label = seen.page.locator("label.line").filter(has=way)
        await expect(label).to_contain_text("COMMIT is recorded, and this is against it")


async def test_a_page_that_only_shows_the_overview_forgets_old_rows(one: Rig, browser: Browser) -> None:
    """Broken if a page that is left open for days takes more and more memory."""
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        assert "#" not in seen.page.url
        for first in range(0, 24_000, 6_000):
            told = (
                "(first) => takeRows(Array.from({ length: 6000 }, (_, place) =>"
                " ({ id: `1-0.${first + place}`, at: first + place })))"
            )
            await seen.page.evaluate(told, first)
        assert await seen.page.evaluate("known.rows.size") <= 12_000
        assert await seen.page.evaluate("known.rows.has('1-0.23999')")
