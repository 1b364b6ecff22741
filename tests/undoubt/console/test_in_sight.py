"""What the page draws can be read as a whole, says when it was true, and shows only what happened."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace

import pytest
from msgspec.structs import replace
from playwright.async_api import Browser, expect

from tests.undoubt.console.browser import Opened, opened
from tests.undoubt.console.rig import Rig
from tests.undoubt.sidecar.stage import token
from undoubt.coordinator.ledger.acting import new_act
from undoubt.coordinator.ledger.contract import Act, Heuristic
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.coordinator.protocols.steps import AbortStep, TwoPhaseStep
from undoubt.participants.contract import Decision, PreparedBranch, Settled, Waiting
from undoubt.participants.ids import Foreign
from undoubt.recovery.operator.resolve import Operator
from undoubt.serve.console import rows as console_rows

LONG = "the statement was cancelled because the row is held by another transaction, " * 4
FAR = 12_345_678
"""Transactions of a coordinator that has run for long have long ids."""


def put(one: Rig, seq: int, reason: str = "") -> str:
    """A transaction of this process that was rolled back; its id."""
    id_, at = str(one.session.txid(seq)), time.time() - 200_000 + seq % 1000
    one.console.feed.rows.put_own(
        {
            "id": id_, "state": "aborted", "outcome": "aborted", "recorded": False, "finished": True,
            "protocol": "2pc", "participants": ["orders", "payments"], "at": at, "coordinator": "test",
            "reason": reason,
        }
    )  # fmt: skip
    return id_


LISTS = ("transactions", "sessions", "locks", "heuristics", "impostors", "audit")


async def long_lists(one: Rig) -> None:
    """More rows than a window has in every list, with long names."""
    session, at = one.session, time.time()
    for number in range(1, 81):
        put(one, FAR + number, LONG if number % 7 == 0 else "")
        await one.ledger.open_session(f"shop {number} {LONG if number % 9 == 0 else ''}"[:200], 3600.0)
        await one.ledger.record_act(new_act("tx resolve --rollback", str(session.txid(FAR + number)), LONG))
        name = f"settlement {number} {'of the night ' * 10}"
        await one.ledger.lock(LockRequest(name, session.id, session.nonce, number), wait=False)
        gid = one.gids(FAR + 1_000 + number)[0]
        found = Heuristic(gid, Settled.HEURISTIC_ROLLBACK, Decision.COMMIT, at, LONG)
        await one.ledger.record_heuristic(found)
        foreign = Foreign(f"of-another-program-{number}-" + "x" * 120)
        one.participants["orders"].foreign.append(PreparedBranch(foreign, "someone", "orders", at, 1.0))


async def settle(seen: Opened) -> None:
    """Wait until the page has drawn what it knows."""
    await seen.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


@pytest.mark.parametrize("width", [360, 1440, 3840])
async def test_no_text_is_cut(one: Rig, browser: Browser, width: int) -> None:
    """Broken if an id, a reason or a name of a list cannot be read as a whole, however long the list is."""
    await long_lists(one)
    async with opened(browser, one.base, width=width) as seen:
        await seen.sign_in(token("watcher"))
        for place in LISTS:
            await seen.go(place)
            box = seen.page.locator(f"#rows-{place}")
            await expect(box).to_have_attribute("aria-rowcount", re.compile("8[0-9]"))
            for share in (0, 0.5, 1):
                await box.evaluate("(box, share) => { box.scrollTop = box.scrollHeight * share }", share)
                await settle(seen)
                assert await seen.clipped() == [], (place, share)
        assert await seen.page.evaluate("document.documentElement.scrollWidth") <= width


async def test_a_burst_is_listed_as_a_whole(
    one: Rig, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if decisions that came faster than they were read, while no page was open, stay missing."""
    monkeypatch.setattr(console_rows, "PAGE", 5)
    monkeypatch.setattr(console_rows, "PAGES_MAX", 2)
    await one.decided(1)
    await one.console.feed.rows.read(one.ledger)
    for seq in range(2, 62):
        await one.decided(seq)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        found = seen.page.locator("#found")
        await expect(found).to_contain_text(
            "61 transactions of 61; finished ones: all that the ledger keeps."
        )
        await expect(found).not_to_contain_text("missing")


async def test_an_id_is_one_line_on_a_wide_screen(one: Rig, browser: Browser) -> None:
    """Broken if a long transaction id is broken into lines where the window has room for it."""
    for number in range(80):
        put(one, FAR + number)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        link = seen.page.locator("#rows-transactions a").first
        await expect(link).to_contain_text(str(FAR + 79))
        assert await link.evaluate("(link) => link.getClientRects().length") == 1


async def test_rows_of_any_height_stay_where_they_are_read(one: Rig, browser: Browser) -> None:
    """Broken if a list of tall and low rows jumps while it is scrolled, or while rows come."""
    for number in range(300):
        put(one, FAR + number, LONG if number % 3 == 0 else "")
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        box = seen.page.locator("#rows-transactions")
        await expect(box).to_have_attribute("aria-rowcount", "301")
        await box.evaluate("(box) => { box.scrollTop = box.scrollHeight / 2 }")
        upper = await upper_row(seen)
        for number in range(300, 320):
            put(one, FAR + number, LONG)
        await expect(box).to_have_attribute("aria-rowcount", "321")
        assert await upper_row(seen) == upper
        # Upwards: rows that come into sight are measured, and that moves nothing that is read.
        for _ in range(40):
            id_, top = await upper_row(seen)
            await box.evaluate("(box) => { box.scrollTop -= 30 }")
            await settle(seen)
            row = box.locator(f"[data-key='{id_}']")
            now = await row.evaluate("(row) => row.getBoundingClientRect().top")
            assert abs(now - top - 30) < 2
        await box.evaluate("(box) => { box.scrollTop = box.scrollHeight }")
        await expect(box).to_contain_text(f".{FAR}")


UPPER = """
() => {
  const box = document.getElementById('rows-transactions');
  const edge = box.firstChild.getBoundingClientRect().bottom + 1;
  const rows = [...box.querySelectorAll('[data-key]')];
  const row = rows.find((one) => one.getBoundingClientRect().bottom > edge);
  return [row.dataset.key, Math.round(row.getBoundingClientRect().top)];
}
"""


async def upper_row(seen: Opened) -> tuple[str, int]:
    """The row at the upper edge of the list, beneath the titles, and where it is."""
    await settle(seen)
    id_, top = await seen.page.evaluate(UPPER)
    return id_, top


BEATS = """
(paces) => {
  // Beats, one each second, of a server that reads a part at the paces given: so many seconds, so often.
  take(`event: hello\\ndata: ${JSON.stringify(known.hello)}`);
  let now = known.beat.now;
  return paces.flatMap(([pace, times]) => Array.from({ length: times }, () => {
    const at = now;
    return Array.from({ length: pace }, () => {
      const parts = { transactions: { at, interval_s: 0.25, error: '' } };
      take(`event: beat\\ndata: ${JSON.stringify({ now, parts })}`);
      now += 1;
      return staleness('transactions') ? 'x' : '.';
    }).join('');
  }));
}
"""


async def test_the_mark_of_a_slow_source_stays(one: Rig, browser: Browser) -> None:
    """Broken if "as of" comes and goes with each reading of a ledger that is slow, or stays once it is
    fast."""
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        assert await seen.page.evaluate(BEATS, [[1, 4]]) == ["."] * 4
        assert await seen.page.evaluate(BEATS, [[5, 3]]) == ["....."] * 3
        told = await seen.page.evaluate(BEATS, [[8, 3], [1, 3]])
        assert told == ["......xx", "xxxxxxxx", "xxxxxxxx", "x", ".", "."]


async def test_a_branch_that_did_not_prepare_waits_for_nothing(
    one: Rig, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a branch whose PREPARE failed is drawn as one that has voted and waits, or if the mark of the
    longer scale is drawn over what is written beneath it."""
    id_ = put(one, 1, "no more credit")
    first, second = one.gids(1)
    traces = one.console.traces
    with monkeypatch.context() as earlier:
        earlier.setattr("undoubt.serve.console.traces.time", SimpleNamespace(time=lambda: time.time() - 9))
        traces.note(id_, "begin")
        for gid in (first, second):
            traces.note(id_, "branch", gid.branch, gid.participant)
    traces.note(id_, "commit")
    for gid in (first, second):
        traces.observe(TwoPhaseStep.BEFORE_PREPARE, str(gid))
    traces.observe(AbortStep.VOTED_ABORT, str(second))
    for gid in (second, first):
        traces.observe(TwoPhaseStep.AFTER_PREPARE, str(gid))
    for step in (AbortStep.BEFORE_ABORT, AbortStep.AFTER_ABORT):
        for gid in (first, second):
            traces.observe(step, str(gid))
    traces.note(id_, "end")
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go(f"tx/{id_}")
        picture = seen.page.get_by_role("img", name="The transaction in time")
        told = await picture.get_attribute("aria-label") or ""
        assert "2 payments: PREPARE failed: voted ABORT, nothing is prepared" in told
        assert "2 payments: voted PREPARED" not in told
        assert "1 orders: voted PREPARED, until it is rolled back" in told
        assert "1 orders: ROLLBACK PREPARED" in told
        await expect(picture.locator(".refused")).to_have_text(
            ["rolled back: no more credit", "PREPARE failed: voted ABORT, nothing is prepared"]
        )
        await expect(picture.locator(".s-wait")).to_have_count(1)
        await expect(picture.locator(".break")).to_have_count(2)
        assert await seen.clipped() == []
        await seen.page.set_viewport_size({"width": 360, "height": 740})
        await expect(picture).to_have_attribute("width", re.compile(r"^3\d\d$"))
        assert await seen.clipped() == []
        await seen.page.get_by_text("moments, with the waits between").click()
        await expect(seen.page.locator("main")).to_contain_text("voted ABORT: PREPARE failed")


async def test_what_an_operator_ended_is_drawn_after_the_decision(
    one: Rig, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if the picture shows a branch as rolled back before the decision by which an operator rolled it
    back, without the name of its participant, or with the line of the decision over a text."""
    gids = await one.prepared(1)
    txid = gids[0].txid
    with monkeypatch.context() as earlier:
        earlier.setattr("undoubt.serve.console.traces.time", SimpleNamespace(time=lambda: time.time() - 9))
        one.console.traces.note(str(txid), "begin")
    record = one.ledger.record_act

    async def recorded(act: Act) -> None:
        # The ledger was slow with the first act, and the second one was an operator's later.
        await record(replace(act, at=act.at + (-1.0 if str(gids[0]) == act.subject else 1.0)))

    one.ledger.record_act = recorded  # type: ignore[method-assign]
    for gid in gids:
        await Operator(one.ledger, one.console.participants).roll_back(gid)
    await one.ledger.finish([txid])
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go(f"tx/{txid}")
        picture = seen.page.get_by_role("img", name="The transaction in time")
        for name in ("1 orders", "2 payments"):
            told = re.compile(f"{name}: rolled back by an operator")
            await expect(picture).to_have_attribute("aria-label", told)
        steps = await seen.page.evaluate("momentsOf(known.one).moments.map(({ step, at }) => [step, at])")
        [decided] = [at for step, at in steps if step == "after_decide"]
        assert [at >= decided for step, at in steps if step == "operator_rollback"] == [True, True]
        await expect(picture.locator(".decision").first).to_be_attached()
        assert await seen.clipped() == []
        await seen.page.set_viewport_size({"width": 360, "height": 740})
        await expect(picture).to_have_attribute("width", re.compile(r"^3\d\d$"))
        assert await seen.clipped() == []


async def test_one_name_in_two_databases_is_two_branches(one: Rig, browser: Browser) -> None:
    """Broken if a branch in doubt is not counted because another database, which was made from a copy of the
    first one, lists the same name."""
    payments = one.participants["payments"]
    payments.names = frozenset({"payments", "orders"})
    gid = one.gids(1)[0]
    for participant in one.participants.values():
        await (await participant.begin(gid, timeout_s=60.0)).prepare()
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await expect(seen.page.locator("#in-doubt")).to_have_text("2")
        table = seen.page.get_by_role("region", name="In doubt by participant and age")
        for name in ("orders", "payments"):
            row = table.get_by_role("row").filter(has_text=name)
            await expect(row.get_by_role("cell").nth(1)).to_have_text("1")
        await seen.go(f"tx/{gid.txid}")
        rows = seen.page.get_by_role("region", name="Branches").get_by_role("row")
        for name in ("orders", "payments"):
            row = rows.filter(has=seen.page.get_by_role("cell", name=name, exact=True))
            await expect(row).to_contain_text("prepared")


SCROLLED = """
async () => {
  const box = document.getElementById('rows-sessions');
  const seen = new Set();
  let last = -1;
  for (let turn = 0; turn < 3000 && box.scrollTop !== last; turn += 1) {
    last = box.scrollTop;
    const edge = box.getBoundingClientRect();
    for (const row of box.querySelectorAll('[data-key]')) {
      const { top, bottom } = row.getBoundingClientRect();
      if (bottom > edge.top && top < edge.bottom) seen.add(row.dataset.key);
    }
    box.scrollTop += 250;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  }
  return [...seen];
}
"""


async def test_every_session_can_be_scrolled_to(one: Rig, browser: Browser) -> None:
    """Broken if a list whose rows have numbers as ids skips rows, or never reaches its end, when names
    wrap."""
    for number in range(150):
        await one.ledger.open_session(f"shop {number} {LONG}"[:200], 3600.0)
    async with opened(browser, one.base, width=800) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("sessions")
        await expect(seen.page.locator("#rows-sessions")).to_have_attribute("aria-rowcount", "152")
        keys = await seen.page.evaluate(SCROLLED)
        assert sorted(map(int, keys)) == sorted(each.id for each in await one.ledger.sessions())


async def test_a_printed_list_has_all_its_rows(one: Rig, browser: Browser) -> None:
    """Broken if paper shows the part of a list that was in sight, beside the sections, in the colors of a
    dark screen."""
    for number in range(120):
        put(one, FAR + number)
    async with opened(browser, one.base, dark=True) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go("transactions")
        rows = seen.page.locator("#rows-transactions [data-key]")
        await expect(seen.page.locator("#rows-transactions")).to_have_attribute("aria-rowcount", "121")
        assert await rows.count() < 60
        await seen.page.evaluate("addEventListener('afterprint', () => { window.paper = window.atPrint; })")
        await seen.page.evaluate(
            "addEventListener('beforeprint', () => {"
            " window.atPrint = document.querySelectorAll('#rows-transactions [data-key]').length; })"
        )
        await seen.page.pdf()
        assert await seen.page.evaluate("window.paper") == 120
        await expect(rows).not_to_have_count(120)
        await seen.page.emulate_media(media="print", color_scheme="dark")
        await expect(seen.page.get_by_role("navigation")).to_be_hidden()
        assert await seen.page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 36, 48)"
        box = seen.page.locator("#rows-transactions")
        assert await box.evaluate("(box) => getComputedStyle(box).overflowY") == "visible"


async def test_forced_colors_say_the_same(one: Rig, browser: Browser) -> None:
    """Broken if with the system's colors the current section, a state or a warning looks like any text."""
    await one.decided(1)
    async with opened(browser, one.base, forced_colors="active") as seen:
        await seen.sign_in(token("watcher"))
        await expect(seen.page.locator("main .note").first).to_be_visible()
        style = "(node, name) => getComputedStyle(node)[name]"
        current = seen.page.locator("nav a[aria-current]")
        other = seen.page.locator("nav a:not([aria-current])").first
        back = "backgroundColor"
        assert await current.evaluate(style, back) != await other.evaluate(style, back)
        for box in (".pill", "main .note"):
            assert await seen.page.locator(box).first.evaluate(style, "borderTopStyle") != "none"
        await seen.go("overview")
        text = seen.page.locator("svg text").first
        assert await text.evaluate(style, "fill") == await seen.page.locator("main h2").evaluate(
            style, "color"
        )


async def test_the_picture_of_a_deadlocks_victim_has_its_wait_and_its_end(one: Rig, browser: Browser) -> None:
    """Broken if the victim of a deadlock is drawn as a transaction that worked until its end."""
    gid, holder = one.gids(1)[0], one.gids(2)[0]
    id_ = str(gid.txid)
    traces = one.console.traces
    traces.note(id_, "begin")
    traces.note(id_, "branch", gid.branch, gid.participant)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        table = seen.page.get_by_role("region", name="Participants").get_by_role("row")
        waits = table.filter(has_text="orders").get_by_role("cell").nth(3)
        one.participants["orders"].waiting.append(Waiting(gid, holder, "since", 7, None))
        await expect(waits).to_have_text("1")
        one.participants["orders"].waiting.clear()
        await expect(waits).to_have_text("0")
        traces.note(id_, "end")
        put(one, 1, "DistributedDeadlock: deadlock across orders, payments")
        await seen.go(f"tx/{id_}")
        picture = seen.page.get_by_role("img", name="The transaction in time")
        told = await picture.get_attribute("aria-label") or ""
        assert f"1 orders: waits for {holder.txid} for" in told
        assert "rolled back: DistributedDeadlock: deadlock across orders, payments" in told
        await expect(picture.locator(".cross")).to_have_count(1)
        await expect(picture.locator(".c-lock")).to_have_count(1)
        assert await seen.clipped() == []


async def test_paper_says_of_which_day_it_is(one: Rig, browser: Browser) -> None:
    """Broken if a sheet of paper says that it is live, or an hour without its day."""
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await expect(seen.page.locator("#paper")).to_be_hidden()
        await seen.page.emulate_media(media="print")
        await expect(seen.page.locator("#live")).to_be_hidden()
        date = re.compile(r"^as of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC[+-]\d\d:\d\d$")
        await expect(seen.page.locator("#paper")).to_have_text(date)
        await expect(seen.page.locator("#paper")).to_be_visible()


async def test_texts_of_the_command_line_are_those_of_a_page(one: Rig, browser: Browser) -> None:
    """Broken if a command has its backticks, an option is broken in two, or a duration has another form."""
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        text = "for 5m 00s: `undoubt indoubt commit x --heuristic`"
        shown = await seen.page.evaluate("(text) => h('p', {}, sentence(text)).outerHTML", text)
        command = '<code>undoubt indoubt commit x <span class="nowrap">--heuristic</span></code>'
        assert shown == f"<p>for 5 min 0 s: {command}</p>"


async def test_branches_are_explained_in_their_order(one: Rig, browser: Browser) -> None:
    """Broken if the second branch of a transaction is explained before the first one."""
    gids = await one.prepared(1)
    async with opened(browser, one.base) as seen:
        await seen.sign_in(token("watcher"))
        await seen.go(f"tx/{one.session.txid(1)}")
        titles = seen.page.get_by_role("heading", name="Explained")
        await expect(titles).to_have_text([f"Explained: {gid}" for gid in gids])
        await seen.go("gid/nothing")
        await expect(seen.page.locator("main")).to_contain_text("This address names no prepared transaction")


async def test_the_overview_fits_the_narrowest_window(one: Rig, browser: Browser) -> None:
    """Broken if a column is beside what is in sight at 320 pixels, which is 1280 at 400 %."""
    await one.prepared(1)
    async with opened(browser, one.base, width=320) as seen:
        await seen.sign_in(token("watcher"))
        await expect(seen.page.locator("#in-doubt")).to_have_text("2")
        assert await seen.clipped() == []
