"""The pieces of the console alone: the last hour, traces, rows, and subscriptions that are slow."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.undoubt.console.reading import reading
from tests.undoubt.console.rig import rig
from undoubt.config import Settings, load
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError
from undoubt.serve.console import rows as console_rows
from undoubt.serve.console import traces as console_traces
from undoubt.serve.console.feed import Feed, pause_s
from undoubt.serve.console.hour import BOUNDS_MS, SLOTS, LastHour
from undoubt.serve.console.readings import without_ages
from undoubt.serve.console.rows import TransactionRows
from undoubt.serve.console.server import check
from undoubt.serve.console.settings import ConsoleSettings
from undoubt.serve.console.traces import Traces, also


def hour(since: float = 0.0) -> LastHour:
    made = LastHour("Of a test.")
    made.since = since
    return made


def test_the_last_hour_has_sixty_minutes() -> None:
    """Broken if it grows for as long as the process runs."""
    made = hour()
    now = time.time()
    for minute in range(300):
        made.ended("committed", now - (299 - minute) * 60)
    slots = made.document()["slots"]
    assert SLOTS - 1 <= len(slots) <= SLOTS
    assert all(slot["committed"] == 1 for slot in slots)


def test_ends_before_the_process_began_do_not_count() -> None:
    """Broken if a page says that it counts since a moment, and counts what was before."""
    made = hour(since=time.time())
    made.ended("committed", made.since - 1)
    made.ended("aborted", made.since + 1)
    assert [(slot["committed"], slot["aborted"]) for slot in made.document()["slots"]] == [(0, 1)]


def test_an_end_that_is_reported_late_counts_in_its_own_minute() -> None:
    made = hour()
    now = time.time() // 60 * 60
    for at in (now - 60, now, now - 59):
        made.ended("committed", at)
    assert [slot["committed"] for slot in made.document()["slots"]] == [2, 1]


def test_ends_are_counted_in_any_order() -> None:
    """Broken if a console that reads the newest decisions first loses those of the minutes before."""
    made = hour()
    now = time.time() // 60 * 60
    for at in (now, now - 120, now - 60, now - 30 * 86_400):
        made.ended("committed", at)
    slots = made.document()["slots"]
    assert [(slot["at"], slot["committed"]) for slot in slots] == [(now - 120, 1), (now - 60, 1), (now, 1)]


def test_an_hour_that_is_incomplete_says_so_for_an_hour() -> None:
    """Broken if counts that are too low look like all that was decided, or are doubted for ever."""
    made = hour()
    assert made.document()["incomplete_before"] is None
    made.missed_before = time.time() - 60
    assert made.document()["incomplete_before"] == made.missed_before
    made.missed_before -= 2 * 3600
    assert made.document()["incomplete_before"] is None


@pytest.mark.parametrize("took_s", [0.0, 0.0009, 0.02, 3.0, 1000.0])
def test_quantiles_are_at_most_a_quarter_too_high(took_s: float) -> None:
    made = hour()
    made.ended("committed", time.time(), took_s)
    [slot] = made.document()["slots"]
    told = slot["p50_ms"]
    assert told == slot["p99_ms"]
    assert min(took_s * 1000, BOUNDS_MS[-1]) <= told + 0.05
    assert told <= max(took_s * 1250, 1.0) or told == round(BOUNDS_MS[-1], 1)


def test_traces_keep_the_newest_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_traces, "TRANSACTIONS_MAX", 2)
    monkeypatch.setattr(console_traces, "MOMENTS_MAX", 3)
    traces = Traces()
    for number in range(3):
        for _ in range(5):
            traces.note(f"1-0123456789abcdef.{number}", "begin")
    assert traces.of("1-0123456789abcdef.0") == []
    assert len(traces.of("1-0123456789abcdef.2")) == 3


def test_traces_know_whose_step_it_is() -> None:
    """Broken if a step of one branch is drawn at another, or a participant's is taken for a transaction's."""
    traces, heard = Traces(), []

    def observe(step: Any, subject: str) -> None:
        heard.append((step, subject))

    both = also(observe, traces)
    txid = "1-0123456789abcdef.7"
    gid = f"undoubt:k3v9q0x2ab:2:{txid}:2:payments"
    both(TwoPhaseStep.BEFORE_DECIDE, txid)
    both(TwoPhaseStep.AFTER_PREPARE, gid)
    both(TwoPhaseStep.AFTER_PREPARE, "payments")
    assert [(one["step"], one["branch"]) for one in traces.of(txid)] == [
        ("before_decide", 0),
        ("after_prepare", 2),
    ]
    assert traces.of("payments") == []
    assert len(heard) == 3


async def test_rows_are_bounded_and_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_rows, "ROWS_MAX", 10)
    monkeypatch.setattr(console_rows, "PAGE", 4)
    async with rig() as one:
        for seq in range(1, 31):
            await one.decided(seq)
        rows = TransactionRows(lambda _: None)
        for _ in range(10):
            await rows.read(one.ledger)
        kept = {row["id"] for row in rows}
        assert len(kept) == 10
        assert str(one.session.txid(30)) in kept
        assert not rows.about()["complete"]


async def test_older_decisions_are_read_until_the_end() -> None:
    async with rig() as one:
        for seq in range(1, 8):
            await one.decided(seq, Decision.ABORT)
        rows = TransactionRows(lambda _: None)
        await rows.read(one.ledger)
        await rows.read(one.ledger)
        assert len(list(rows)) == 7
        assert rows.about()["complete"]


async def test_no_decision_is_missed_between_two_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    """More new decisions than a page has, and one that carries an earlier time than one that is known."""
    monkeypatch.setattr(console_rows, "PAGE", 3)
    async with rig() as one:
        rows = TransactionRows(lambda _: None)
        await one.decided(1)
        await rows.read(one.ledger)
        for seq in range(2, 14):
            await one.decided(seq)
        await rows.read(one.ledger)
        assert {row["id"] for row in rows} == {str(one.session.txid(seq)) for seq in range(1, 14)}
        assert rows.about()["missed_before"] is None


async def test_more_than_one_reading_takes_is_told_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_rows, "PAGE", 2)
    monkeypatch.setattr(console_rows, "PAGES_MAX", 2)
    async with rig() as one:
        rows = TransactionRows(lambda _: None)
        await one.decided(1)
        await rows.read(one.ledger)
        for seq in range(2, 14):
            await one.decided(seq)
        await rows.read(one.ledger)
        missed_before = rows.about()["missed_before"]
        assert missed_before == min(row["at"] for row in rows if row["id"] != str(one.session.txid(1)))
        monkeypatch.setattr(console_rows, "ROWS_MAX", 3)
        await rows.read(one.ledger)
        assert rows.about()["missed_before"] is None, "all that are listed are newer"


async def test_the_gap_after_a_burst_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if decisions stay missing that came faster than they were read: in one burst, in another one
    while the first gap is open, and where a row of the gap is known since it is unfinished."""
    monkeypatch.setattr(console_rows, "PAGE", 3)
    monkeypatch.setattr(console_rows, "PAGES_MAX", 2)
    async with rig() as one:
        rows = TransactionRows(lambda _: None)
        await one.decided(1)
        await rows.read(one.ledger)
        for burst in (range(2, 32), range(32, 62)):
            for seq in burst:
                await one.decided(seq, finish=seq % 10 != 7)
            await rows.read(one.ledger)
            assert rows.about()["missed_before"]
            assert not rows.about()["complete"]
        for _ in range(30):
            await rows.read(one.ledger)
        assert rows.about()["missed_before"] is None
        assert {row["id"] for row in rows} == {str(one.session.txid(seq)) for seq in range(1, 62)}
        assert rows.left_out_before == 0.0


async def test_a_gap_is_read_no_further_than_the_list_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if rows that the list cannot hold are read again and again."""
    monkeypatch.setattr(console_rows, "PAGE", 3)
    monkeypatch.setattr(console_rows, "PAGES_MAX", 2)
    monkeypatch.setattr(console_rows, "ROWS_MAX", 12)
    async with rig() as one:
        rows = TransactionRows(lambda _: None)
        await one.decided(1)
        await rows.read(one.ledger)
        for seq in range(2, 40):
            await one.decided(seq)
        await rows.read(one.ledger)
        first = rows.about()["missed_before"]
        for _ in range(5):
            await rows.read(one.ledger)
        assert rows.about()["missed_before"] is None
        assert {row["id"] for row in rows} == {str(one.session.txid(seq)) for seq in range(28, 40)}
        assert 0 < rows.left_out_before <= first


async def test_a_node_says_that_its_hour_misses_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a node that reads too slowly shows too few commits as all of them."""
    monkeypatch.setattr(console_rows, "PAGE", 2)
    monkeypatch.setattr(console_rows, "PAGES_MAX", 2)
    monkeypatch.setattr(console_rows, "ROWS_MAX", 5)
    async with rig(counts_rows=True) as one:
        one.console.hour.since = 0.0
        await one.decided(1)
        await one.console.feed.rows.read(one.ledger)
        for seq in range(2, 14):
            await one.decided(seq)
        async with reading(one.base) as reader:
            await reader.until(lambda: reader.parts.get("hour", {}).get("incomplete_before"))
        counted = sum(slot["committed"] for slot in reader.parts["hour"]["slots"])
        assert counted < 13


async def test_what_this_process_saw_yields_to_the_ledger() -> None:
    """Broken if a transaction is shown as this process believed, against what is recorded."""
    async with rig() as one:
        rows = TransactionRows(lambda _: None)
        txid = await one.decided(1)
        own = {"id": str(txid), "recorded": False, "outcome": "aborted", "reason": "seen here"}
        rows.put_own({**own, "at": time.time(), "finished": True})
        await rows.read(one.ledger)
        rows.put_own({**own, "at": time.time(), "finished": True})
        [row] = rows
        assert (row["outcome"], row["reason"]) == ("committed", "seen here")


async def test_a_slow_page_gets_the_newest_of_each_and_no_more() -> None:
    """Broken if what was told to a page that does not read grows without bound."""
    feed = Feed(dict)
    subscription = feed.subscribe({})
    row = {"id": "1", "recorded": False, "finished": True, "reason": ""}
    for number in range(1000):
        feed.rows.put_own({**row, "number": number, "at": 0.0})
        subscription.put("running", b"event: running\ndata: %d\n\n" % number)
    events = subscription.events()
    told = (await anext(events)).decode()
    await events.aclose()
    assert told.count("event: rows\n") == told.count("event: running\n") == 1
    assert '"number":999' in told
    assert "data: 999\n" in told
    assert not feed.clients()


@pytest.mark.parametrize(
    ("interval_s", "took_s", "paused_s"),
    [(0.25, 0.01, 0.25), (0.25, 0.5, 1.5), (0.25, 10.0, 3.0), (60.0, 30.0, 60.0)],
)
def test_one_slow_reading_does_not_keep_a_part_old(interval_s: float, took_s: float, paused_s: float) -> None:
    """Broken if a part stays as it is for half a minute since its process was stopped while it read."""
    assert pause_s(interval_s, took_s) == paused_s


def test_ages_are_left_out_at_any_depth() -> None:
    """Broken if every reading differs from the one before, and everything is told four times a second."""
    assert without_ages({"a": [{"age_s": 1.0, "b": 2}], "age_s": 3}) == {"a": [{"b": 2}]}


@pytest.mark.parametrize(
    ("console", "why"),
    [
        (ConsoleSettings(), "console.tokens"),
        (ConsoleSettings(listen="10.0.0.1:7480", tokens=()), "console.tokens"),
    ],
)
def test_a_node_serves_no_console_without_clients(console: ConsoleSettings, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check(Settings(console=console))


def test_a_node_serves_other_machines_by_tls_only() -> None:
    known = {"name": "a", "sha256": "0" * 64, "roles": ["observe"]}
    settings = load({"console": {"listen": "10.0.0.1:7480", "tokens": [known]}})
    with pytest.raises(UsageError, match="tls_cert"):
        check(settings)
