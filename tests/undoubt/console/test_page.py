"""The page in a real browser: what people see, what they can do, and what a page must never do."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from playwright.async_api import Browser, expect

from tests.undoubt.console.browser import WAIT_MS, Opened, opened
from tests.undoubt.console.rig import Rig
from tests.undoubt.sidecar.stage import token
from undoubt.cli.output import printable, printable_cell
from undoubt.coordinator.ledger.acting import new_act
from undoubt.coordinator.ledger.contract import Heuristic, record_of
from undoubt.participants.contract import Decision, PreparedBranch, Settled
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Foreign
from undoubt.serve.console import app as console_app
from undoubt.serve.console.page import page as the_page

PLACES = ("overview", "transactions", "sessions", "locks", "heuristics", "impostors", "audit")


async def clean(seen: Opened) -> None:
    """The page broke no policy, ran nothing that was planted, and reported no error."""
    assert await seen.planted() == []
    assert await seen.refused() == []
    assert seen.errors == []


def test_the_page_is_one_file_without_handlers_or_addresses() -> None:
    """Broken if the page needs another file, or has a script that the policy does not name."""
    answer = the_page()
    text = answer.body.decode()
    assert text.count("<script>") == text.count("</script>") == 1
    assert text.count("<style>") == 1
    assert re.findall(r"<[a-z][^>]*\son[a-z]+\s*=", text) == []
    assert re.findall(r"""(?:src|href)=["']?https?:""", text) == []
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert sink not in text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for part in ("frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'"):
        assert part in policy
    assert "unsafe" not in policy


async def test_a_token_opens_it_and_a_wrong_one_does_not(one: Rig, browser: Browser) -> None:
    async with opened(browser, one.base) as seen:
        field = seen.page.get_by_label("Token")
        await field.fill("undoubt_wrong")
        await seen.page.keyboard.press("Enter")
        await expect(seen.page.get_by_role("alert")).to_contain_text("refused")
        await seen.sign_in(token("watcher"))
        await expect(seen.page.get_by_role("heading", name="Overview")).to_be_visible()
        await expect(seen.page.get_by_text("doctor reports 1 problem.")).to_be_visible()
        assert token("watcher") not in seen.page.url
        assert await seen.page.evaluate("document.cookie") == ""
        await clean(seen)


async def test_a_client_that_may_not_look_is_told_so(one: Rig, browser: Browser) -> None:
    async with opened(browser, one.base) as seen:
        await seen.page.get_by_label("Token").fill(token("shop"))
        await seen.page.keyboard.press("Enter")
        await expect(seen.page.locator("#denied")).to_contain_text("needs the role observe")
        await clean(seen)


async def test_what_is_planted_is_shown_as_text(one: Rig, browser: Browser) -> None:
    """Broken if a name that any database role can choose runs a script in an operator's browser."""

    def planted(where: str) -> str:
        return f"<img src=x onerror=planted('{where}')><script>planted('{where}')</script>"

    now = time.time()
    one.participants["orders"].foreign.append(
        PreparedBranch(Foreign(planted("gid")), planted("role"), planted("database"), now, 1.0)
    )
    one.participants["payments"].down = ParticipantUnavailable("payments", planted("error"))
    await one.ledger.open_session(planted("session"), 3600.0)
    gid = one.gids(1)[0]
    await one.ledger.decide(gid.txid, Decision.ABORT, [record_of(gid)], cause=planted("cause"))
    await one.ledger.record_heuristic(
        Heuristic(gid, Settled.HEURISTIC_COMMIT, Decision.ABORT, now, planted("note"))
    )
    await one.ledger.record_act(new_act(planted("verb"), planted("subject"), planted("why")))
    wanted = {
        "overview": ["error"],
        "transactions": ["cause"],
        "sessions": ["session"],
        "heuristics": ["note"],
        "impostors": ["gid", "role"],
        "audit": ["subject", "why", "verb"],
        f"tx/{gid.txid}": ["cause", "note"],
    }
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("operator"))
        for place, names in wanted.items():
            await seen.go(place)
            for name in names:
                await expect(seen.page.locator("main")).to_contain_text(planted(name))
        assert await seen.page.locator("main img, main script").count() == 0
        await clean(seen)


async def test_old_state_is_marked_until_it_is_new_again(one: Rig, browser: Browser) -> None:
    """Broken if an operator decides by what was true before the connection was lost."""
    await one.decided(1)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        await expect(seen.page.locator("[data-stale]")).to_have_count(0)
        await seen.page.route("**/v1/console/events", lambda route: route.abort())
        await seen.page.evaluate("reading.abort()")
        await expect(seen.page.locator("#live")).to_contain_text("as of")
        await expect(seen.page.locator("[data-stale]").first).to_be_visible()
        await expect(seen.page.locator("main")).to_contain_text(str(one.session.txid(1)))
        await seen.page.unroute("**/v1/console/events")
        await seen.live()
        await expect(seen.page.locator("[data-stale]")).to_have_count(0)


async def test_what_is_old_does_not_say_that_all_is_well(one: Rig, browser: Browser) -> None:
    """Broken if an operator reads that nothing is needed, from a page that does not know it any more."""
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await expect(seen.page.get_by_text("doctor reports 1 problem.")).to_be_visible()
        await seen.page.evaluate("known.parts.doctor.findings = []")
        await expect(seen.page.locator("main")).to_contain_text("Nothing needs you now.")
        await seen.page.route("**/v1/console/events", lambda route: route.abort())
        await seen.page.evaluate("reading.abort()")
        await expect(seen.page.locator("main")).to_contain_text("What is true now is not known.")
        await expect(seen.page.locator("main")).not_to_contain_text("Nothing needs you now.")


async def test_a_part_that_is_not_read_any_more_is_marked(one: Rig, browser: Browser) -> None:
    """Broken if one source that hangs looks as current as the others."""
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await expect(seen.page.locator("[data-stale]")).to_have_count(0)
        hang = asyncio.Event()
        one.participants["payments"].in_doubt = hang.wait  # type: ignore[method-assign, assignment]
        await expect(seen.page.locator("[data-stale*=payments]").first).to_be_visible(timeout=WAIT_MS)
        await expect(seen.page.locator("#live")).to_have_text("live")


async def test_what_was_in_doubt_in_a_dead_database_stays_listed(one: Rig, browser: Browser) -> None:
    """Broken if a transaction disappears from the list because the only database that shows it has died."""
    await one.prepared(1, votes=["payments"])
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await expect(seen.page.locator("#in-doubt")).to_have_text("1")
        one.participants["payments"].down = ParticipantUnavailable("payments", "no route")
        await expect(seen.page.locator("main")).to_contain_text("1 branch was in doubt there at")
        await seen.go("transactions")
        row = seen.page.locator("#rows-transactions [role=row]").nth(1)
        await expect(row).to_contain_text(str(one.session.txid(1)))
        await expect(row).to_contain_text("was in doubt at")
        await clean(seen)


async def test_a_row_stays_the_element_that_has_the_focus(one: Rig, browser: Browser) -> None:
    """Broken if new rows push another transaction under the key that is about to be pressed."""
    for seq in range(1, 101):
        await one.decided(seq)
    wanted = str(one.session.txid(99))
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        box = seen.page.locator("#rows-transactions")
        await expect(box).to_have_attribute("aria-rowcount", "101")
        await box.get_by_role("link", name=wanted, exact=True).focus()
        for seq in range(101, 104):
            await one.decided(seq)
        await expect(box).to_have_attribute("aria-rowcount", "104")
        await expect(box).to_contain_text(str(one.session.txid(103)))
        await seen.page.keyboard.press("Enter")
        await expect(seen.page.locator("main h2")).to_contain_text(wanted)


async def test_the_titles_of_columns_stay_in_sight(one: Rig, browser: Browser) -> None:
    """Broken if a long list, scrolled, does not say what its columns are."""
    for seq in range(1, 101):
        await one.decided(seq)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        box = seen.page.locator("#rows-transactions")
        await expect(box).to_have_attribute("aria-rowcount", "101")
        await box.evaluate("(box) => { box.scrollTop = 1500 }")
        await expect(box.get_by_role("columnheader", name="participants")).to_be_in_viewport()


async def test_ten_thousand_rows_are_few_elements(one: Rig, browser: Browser) -> None:
    """Broken if every row is an element: the page would stutter. The last one can be reached, and found."""
    now = time.time()
    for number in range(10_000):
        one.console.feed.rows.put_own(
            {
                "id": f"1-0123456789abcdef.{number}", "state": "aborted", "outcome": "aborted",
                "recorded": False, "finished": True, "protocol": "2pc", "participants": ["orders"],
                "at": now - number, "coordinator": "test", "reason": f"number {number}",
            }
        )  # fmt: skip
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        await expect(seen.page.locator("#found")).to_contain_text("10,000 transactions of 10,000")
        lines = seen.page.locator("#rows-transactions [role=row]")
        assert await lines.count() < 60
        box = seen.page.locator("#rows-transactions")
        assert await box.get_attribute("aria-rowcount") == "10001"
        await box.evaluate("(box) => { box.scrollTop = box.scrollHeight }")
        await expect(box).to_contain_text("1-0123456789abcdef.9999")
        assert await lines.count() < 60
        await seen.page.get_by_label("Search").fill("number 7777")
        await expect(box).to_contain_text("1-0123456789abcdef.7777")
        await expect(lines).to_have_count(2)
        await clean(seen)


async def test_rows_that_are_added_do_not_move_what_is_read(one: Rig, browser: Browser) -> None:
    """Broken if the list runs away under whoever reads it."""
    for seq in range(1, 101):
        await one.decided(seq)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        box = seen.page.locator("#rows-transactions")
        await expect(box).to_have_attribute("aria-rowcount", "101")
        await box.evaluate("(box) => { box.scrollTop = 20 * 37.5 }")
        row = box.get_by_text(str(one.session.txid(70)), exact=True)
        before = await row.bounding_box()
        for seq in range(101, 111):
            await one.decided(seq)
        await expect(box).to_have_attribute("aria-rowcount", "111")
        after = await row.bounding_box()
        assert before is not None
        assert after is not None
        assert abs(before["y"] - after["y"]) < 40


async def test_a_transaction_is_ended_by_keyboard_with_its_id_typed(one: Rig, browser: Browser) -> None:
    """The way of an operator without a mouse: what is recorded is shown, the id typed, the answer stays."""
    await one.prepared(1)
    await one.decided(1, finish=False)
    txid = str(one.session.txid(1))
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("operator"))
        await seen.go(f"tx/{txid}")
        await seen.page.get_by_role("button", name="End this transaction").focus()
        await seen.page.keyboard.press("Enter")
        dialog = seen.page.get_by_role("dialog")
        await expect(dialog).to_contain_text("Recorded: commit.")
        await expect(dialog.get_by_role("row")).to_have_count(3)
        await expect(dialog.get_by_label("Commit all prepared branches")).to_be_checked()
        done = dialog.get_by_role("button", name="Do it")
        await expect(done).to_be_disabled()
        typed = dialog.get_by_label("Type the id")
        await typed.fill("1-0123456789abcdef.1")
        await expect(done).to_be_disabled()
        await typed.fill(txid)
        await expect(done).to_be_enabled()
        assert await seen.violations() == []
        await dialog.get_by_label("Why").fill("by keyboard")
        await seen.page.keyboard.press("Enter")
        answer = seen.page.locator("#answer")
        await expect(answer).to_contain_text("branch 1 in orders: done")
        await expect(answer).to_be_focused()
        await seen.go("overview")
        await seen.go(f"tx/{txid}")
        await expect(seen.page.locator("#answer")).to_contain_text("done")
        await clean(seen)
    assert not one.participants["orders"].prepared
    assert "by keyboard" in {act.note for act in await one.ledger.acts(limit=10)}


async def test_what_is_not_safe_is_confirmed_as_what_it_is(one: Rig, browser: Browser) -> None:
    await one.prepared(1)
    await one.decided(1, finish=False)
    txid = str(one.session.txid(1))
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("operator"))
        await seen.go(f"tx/{txid}")
        await seen.page.get_by_role("button", name="End this transaction").click()
        dialog = seen.page.get_by_role("dialog")
        await dialog.get_by_label("Roll back all prepared branches").check()
        await expect(dialog).to_contain_text("COMMIT IS RECORDED")
        await dialog.get_by_label("Type the id").fill(txid)
        done = dialog.get_by_role("button", name="Do it")
        await expect(done).to_be_disabled()
        await dialog.get_by_label("against or without a recorded decision").check()
        await expect(done).to_be_enabled()
        await dialog.get_by_role("button", name="Cancel").click()
        await expect(dialog).to_be_hidden()
        await clean(seen)
    assert one.participants["orders"].prepared


async def test_a_client_that_only_looks_has_no_buttons_that_act(one: Rig, browser: Browser) -> None:
    await one.prepared(1)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go(f"tx/{one.session.txid(1)}")
        await expect(seen.page.locator("main")).to_contain_text("a client with the role operate")
        assert await seen.page.locator("[data-do=resolve], [data-do=forget]").count() == 0


@pytest.mark.parametrize("width", [360, 1440])
async def test_every_page_is_accessible_and_fits(one: Rig, browser: Browser, width: int) -> None:
    """axe-core finds nothing on any page, and no page scrolls sideways."""
    await one.prepared(1)
    await one.decided(2)
    gid = one.gids(3)[0]
    await one.ledger.decide(gid.txid, Decision.ABORT, [record_of(gid)])
    await one.ledger.record_heuristic(Heuristic(gid, Settled.HEURISTIC_COMMIT, Decision.ABORT, time.time()))
    one.participants["orders"].foreign.append(
        PreparedBranch(Foreign("of another program"), "someone", "orders", time.time(), 1.0)
    )
    async with opened(browser, one.base, width=width) as seen:
        assert await seen.violations() == []
        await seen.sign_in(token("operator"))
        for place in (*PLACES, f"tx/{one.session.txid(1)}", f"tx/{gid.txid}"):
            await seen.go(place)
            await expect(seen.page.locator("main .busy")).to_have_count(0)
            assert await seen.violations() == [], place
            assert await seen.page.evaluate("document.documentElement.scrollWidth") <= width, place
        await clean(seen)


async def test_times_are_local_and_utc_when_pointed_at(one: Rig, browser: Browser) -> None:
    await one.decided(1)
    async with opened(browser, one.base, timezone_id="Asia/Kathmandu") as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        shown = seen.page.locator("#rows-transactions time").first
        local, utc, iso = (
            await shown.inner_text(),
            await shown.get_attribute("title") or "",
            await shown.get_attribute("datetime") or "",
        )
        there = await seen.page.evaluate("(iso) => new Date(iso).toTimeString().slice(0, 8)", iso)
        assert local.endswith(there)
        assert utc.endswith(" UTC")
        assert utc[11:16] != local[-8:-3]


async def test_durations_are_rounded_in_whole(one: Rig, browser: Browser) -> None:
    """Broken if an age is shown as 1 min 60 s."""
    told = {0.0042: "4.2 ms", 59.4: "59 s", 59.7: "1 min 0 s", 119.6: "2 min 0 s", 3599.7: "1 h 0 min"}
    told |= {7199.0: "1 h 59 min", 90_000.0: "1 d 1 h"}
    async with opened(browser, one.base) as seen:
        for length, text in told.items():
            assert await seen.page.evaluate("(length) => duration(length)", length) == text


async def test_an_id_copies(one: Rig, browser: Browser) -> None:
    txid = str(await one.decided(1))
    async with opened(browser, one.base, permissions=["clipboard-read", "clipboard-write"]) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go(f"tx/{txid}")
        await seen.page.get_by_role("button", name=f"Copy {txid}").click()
        await expect(seen.page.locator("#said")).to_have_text(f"Copied: {txid}")
        assert await seen.page.evaluate("navigator.clipboard.readText()") == txid


async def test_characters_that_are_not_seen_are_written_out(one: Rig, browser: Browser) -> None:
    """Broken if a name with characters that turn the text around, or have no width, looks like another
    name."""
    hidden = "pay\u202estnem\u200b-\u00a0\ufeff\U000e0041 end"
    shown = "pay\\u202estnem\\u200b-\\xa0\\ufeff\\U000e0041 end"
    assert printable(hidden) == shown, "as the command line has it"
    one.participants["orders"].foreign.append(
        PreparedBranch(Foreign(hidden), "me", "orders", time.time(), 1.0)
    )
    await one.ledger.open_session(hidden, 3600.0)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        for place in ("impostors", "sessions"):
            await seen.go(place)
            await expect(seen.page.locator("main")).to_contain_text(shown)
            text = await seen.page.locator("main").inner_text()
            assert not set(text) & set("\u202e\u200b\ufeff\u00a0\U000e0041")
        await seen.go("impostors")
        await seen.page.get_by_role("link", name=shown).click()
        await expect(seen.page.locator("main")).to_contain_text("foreign")
        await expect(seen.page.get_by_role("button", name=f"Copy {shown}")).to_have_attribute(
            "data-text", hidden
        )


async def test_names_that_differ_look_different(one: Rig, browser: Browser) -> None:
    """Broken if two names look the same because they differ in spaces, in a line break, or in letters and
    marks that are drawn as nothing; and if the marks of one letter cover other lines."""
    unseen = ("\u3164", "\u2800", "\u034f", "\ufe0f", "\u115f", "\U000e0101")
    names = [
        "a b",
        "a  b",
        " a b",
        "a b ",
        "a\nb",
        "a\tb",
        *(f"a{one}b" for one in unseen),
        "e" + "\u0301" * 9,
    ]
    for place, name in enumerate(names):
        branch = PreparedBranch(Foreign(name), "me", "orders", time.time(), 1.0, xid=place + 1)
        one.participants["orders"].foreign.append(branch)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("impostors")
        links = seen.page.locator("#rows-impostors a.mono")
        await expect(links).to_have_count(len(names))
        shown = {await link.inner_text() for link in await links.all()}
    wanted = {printable_cell(name) for name in names[:-1]} | {"e" + "\u0301" * 3 + "\\u0301" * 6}
    assert shown == wanted


async def test_a_token_that_no_header_can_carry_is_refused(one: Rig, browser: Browser) -> None:
    """Broken if a token with a wrong letter is said to be a server that does not answer."""
    async with opened(browser, one.base) as seen:
        await seen.page.get_by_label("Token").fill("undoubt_ключ")
        await seen.page.keyboard.press("Enter")
        await expect(seen.page.get_by_role("alert")).to_contain_text("only letters from a to z")
        await seen.sign_in(token("watcher"))
        await clean(seen)


async def test_a_page_too_many_is_told_why(
    one: Rig, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a server that answers, and says why it serves no more pages, is said not to answer."""
    monkeypatch.setattr(console_app, "STREAMS_MAX", 0)
    async with opened(browser, one.base) as seen:
        await seen.page.get_by_label("Token").fill(token("watcher"))
        await seen.page.keyboard.press("Enter")
        await expect(seen.page.locator("main")).to_contain_text("0 consoles are open here")
        await expect(seen.page.locator("main")).not_to_contain_text("does not answer")
        monkeypatch.setattr(console_app, "STREAMS_MAX", 32)
        await seen.live()


async def test_the_list_is_where_it_was_left(one: Rig, browser: Browser) -> None:
    """Broken if looking at one transaction loses the place of the next one in a long list."""
    for seq in range(1, 201):
        await one.decided(seq)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        box = seen.page.locator("#rows-transactions")
        await expect(box).to_have_attribute("aria-rowcount", "201")
        await box.evaluate("(box) => { box.scrollTop = 100 * 37.5 }")
        row = box.get_by_role("link", name=str(one.session.txid(98)), exact=True)
        before = await row.bounding_box()
        await row.click()
        await expect(seen.page.locator("main h2")).to_contain_text(str(one.session.txid(98)))
        await seen.page.go_back()
        await expect(row).to_be_in_viewport()
        after = await row.bounding_box()
        assert before is not None
        assert after is not None
        assert abs(before["y"] - after["y"]) < 40


async def test_what_is_searched_is_found(one: Rig, browser: Browser) -> None:
    """Broken if an id finds the transactions whose ids begin with it too, or a gid that is not ours is found
    nowhere."""
    for seq in (1, 10, 11, 12):
        await one.decided(seq)
    foreign = PreparedBranch(Foreign("batch of the night"), "someone", "orders", time.time(), 1.0)
    one.participants["orders"].foreign.append(foreign)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        rows = seen.page.locator("#rows-transactions [data-key]")
        await expect(rows).to_have_count(4)
        field = seen.page.get_by_label("Search")
        await field.fill(str(one.session.txid(1)))
        await expect(rows).to_have_count(1)
        await field.fill("of the night")
        await expect(seen.page.locator("#found")).to_contain_text("1 prepared transaction that is not ours")
        await seen.page.get_by_role("link", name="batch of the night").click()
        await expect(seen.page.get_by_role("heading", name="A prepared transaction")).to_be_visible()


async def test_durations_have_one_form(one: Rig, browser: Browser) -> None:
    """Broken if one page has an age as 1 min 58 s and as 1m 58s."""
    told = {
        "for 1m 58s.": "for 1 min 58 s.",
        "(2h 05m) and 3d 01h": "(2 h 5 min) and 3 d 1 h",
        "in 9.5s": "in 9.5 s",
        "role 45s-x of shop-3m": "role 45s-x of shop-3m",
    }
    async with opened(browser, one.base) as seen:
        for said, shown in told.items():
            assert await seen.page.evaluate("(text) => withUnits(text)", said) == shown
