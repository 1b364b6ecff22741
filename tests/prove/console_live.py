"""What the console shows against what happens and what the command line says, while everything changes.

Transfers run through a sidecar; some are aborted, some are left in doubt, acts are recorded, two transactions
wait for each other across databases. Meanwhile the database ``payments`` is killed and started again, and so
is the leader; the database is stopped for some seconds, and the sidecar itself. A page in Chromium is open
all the time and notes after each drawing what it shows for the first time.

``events``: changes that the page has to show. ``missed``: those that it has not shown, and differences
between the page and the command line at the end. ``stale_unmarked``: looks at the page at which a source had
been silent for more than :data:`STALE_S`, and the page did not say so. ``p95_ms``: from the moment at which a
change was acknowledged to its caller, to the drawing that shows it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from playwright.async_api import Page

from tests.prove.console_stage import NAMES, System, begin, system, transfer
from tests.undoubt.console.browser import Opened, chromium, opened
from tests.undoubt.sidecar.stage import token
from undoubt.coordinator.ledger.acting import new_act
from undoubt.embedded.places import children
from undoubt.participants.ids import Gid, Protocol, SessionKey

WORKERS = 4
EVENTS_MIN = 1000
P95_MS_MAX = 1000.0
STALE_S = 6.0
SHOWN_S = 20.0
"""How long the page has at the end for what it has not shown."""
SILENT_S = 10.0

NOTE = """
(() => {
  window.__first = {};
  const draws = draw;
  const note = (name) => { if (!(name in window.__first)) window.__first[name] = Date.now(); };
  window.draw = () => {
    draws();
    if (known.state !== 'live') return;
    for (const row of known.rows.values()) {
      note(`${row.outcome} ${row.id}`);
      if (row.finished) note(`finished ${row.id}`);
    }
    for (const one of inDoubt()) note(`in doubt ${one.gid}`);
    for (const act of (part('audit') || { acts: [] }).acts) note(`act ${act.subject}`);
    for (const { name, document } of participantParts()) {
      if (document && document.error) note(`down ${name}`);
      for (const wait of (document && document.waits) || []) note(`waits ${wait.waiter} ${wait.holder}`);
    }
    const cluster = part('cluster');
    if (cluster && cluster.leader) note(`leader ${cluster.leader}`);
  };
  draw = window.draw;
})()
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, default=EVENTS_MIN, help="at least so many")
    parser.add_argument("--any-time", action="store_true", help="judge no duration")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    async with system() as stage, chromium() as browser, opened(browser, stage.base) as seen:
        run = Live(stage, seen)
        await seen.sign_in(token("watcher"))
        await seen.page.evaluate(NOTE)
        await seen.go("transactions")
        await run.work(options.events)
        result = await run.compared()
    holds = (
        result["events"] >= options.events
        and not result["missed"]
        and not result["stale_unmarked"]
        and (options.any_time or result["p95_ms"] <= P95_MS_MAX)
    )
    return result, holds


@dataclass
class Live:
    """``happened``: the changes, by the name under which the page notes them, with the moment of each in
    milliseconds since 1970; ``disturbed``: the times in which a source was silent or starting."""

    stage: System
    seen: Opened
    happened: dict[str, float] = field(default_factory=dict)
    disturbed: list[tuple[float, float]] = field(default_factory=list)
    unmarked: list[str] = field(default_factory=list)
    looks: int = 0
    stopping: bool = False

    @property
    def page(self) -> Page:
        return self.seen.page

    def event(self, name: str) -> None:
        self.happened.setdefault(name, time.time() * 1000)

    async def work(self, events: int) -> None:
        rows = itertools.count(1)
        workers = [asyncio.create_task(self._transfers(rows)) for _ in range(WORKERS)]
        acting = asyncio.create_task(self._acts())
        try:
            await self._until(lambda: len(self.happened) >= events // 4)
            await self._leave_in_doubt()
            await self._deadlock()
            await self._kill_leader()
            await self._kill_database()
            await self._stop_database()
            await self._stop_sidecar()
            await self._until(lambda: len(self.happened) >= events)
        finally:
            self.stopping = True
            await asyncio.gather(*workers, acting, return_exceptions=True)

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(600):
            while not holds():
                await asyncio.sleep(0.1)

    # What happens all the time.

    async def _transfers(self, rows: itertools.count[int]) -> None:
        async with self.stage.http() as http:
            while not self.stopping:
                row = next(rows)
                with contextlib.suppress(RuntimeError, KeyError, httpx.HTTPError):
                    await self._transfer(http, 1 + row % 400, abort=row % 10 == 0)

    async def _transfer(self, http: httpx.AsyncClient, row: int, *, abort: bool) -> None:
        id_ = await begin(http, *transfer(row), timeout_s=20.0)
        if abort:
            answer = await http.post(f"/v1/transactions/{id_}/rollback")
            if answer.status_code == 200:
                self.event(f"aborted {id_}")
            return
        answer = await http.post(f"/v1/transactions/{id_}/commit")
        if answer.status_code == 200:
            self.event(f"committed {id_}")
        elif answer.status_code == 409:
            self.event(f"aborted {id_}")

    async def _acts(self) -> None:
        for number in itertools.count():
            if self.stopping:
                return
            with contextlib.suppress(Exception):
                async with self.stage.ledger() as ledger:
                    await ledger.record_act(new_act("proof", f"act number {number}"))
                    self.event(f"act act number {number}")
            await asyncio.sleep(1.0)

    # What happens once.

    async def _leave_in_doubt(self) -> None:
        """Branches of a coordinator that lives and does not decide."""
        async with self.stage.ledger() as ledger:
            session = await ledger.open_session("proof", 3600.0)
            for seq in range(1, 6):
                for number, name in enumerate(NAMES, 1):
                    gid = Gid(ledger.ledger_id, Protocol.TWO_PHASE, session.txid(seq), number, name)
                    gid = gid.tagged(SessionKey(session.key))
                    await self.stage.sql(
                        name,
                        "begin",
                        f"update account set balance = 0 where id = {430 + seq}",
                        f"prepare transaction '{gid}'",
                    )
                    self.event(f"in doubt {gid}")

    async def _deadlock(self) -> None:
        """Two transactions that change two rows of two databases in opposite order."""
        (orders, first), (payments, second) = transfer(450)
        async with self.stage.http() as http:
            one = await begin(http, (orders, first), timeout_s=30.0)
            two = await begin(http, (payments, second), timeout_s=30.0)
            waits = [
                asyncio.create_task(self._statement(one, payments, second)),
                asyncio.create_task(self._statement(two, orders, first)),
            ]
            answers = await asyncio.gather(*waits)
            for id_ in (one, two):
                ended = await http.post(f"/v1/transactions/{id_}/commit")
                self.event(f"{'committed' if ended.status_code == 200 else 'aborted'} {id_}")
        if answers.count(200) != 1:
            raise RuntimeError(f"the deadlock was not ended by one victim: {answers}")

    async def _statement(self, id_: str, participant: str, sql: str) -> int:
        async with self.stage.http() as http:
            body = {"participant": participant, "sql": sql}
            answer = await http.post(f"/v1/transactions/{id_}/statements", json=body)
            if answer.status_code != 200:  # the victim, whose locks the other one waits for
                await http.post(f"/v1/transactions/{id_}/rollback")
            return answer.status_code

    async def _kill_leader(self) -> None:
        nodes = self.stage.nodes
        leader = await nodes.leader()
        began = time.time()
        await nodes.kill(leader)
        now = await nodes.leader()
        await self._shows(f"leader {now}")
        await nodes.run(leader)
        self.disturbed.append((began, time.time()))

    async def _kill_database(self) -> None:
        server = self.stage.servers["payments"]
        began = time.time()
        await server.kill()
        await self._shows("down payments")
        await server.start()
        self.disturbed.append((began, time.time() + 2.0))

    async def _stop_database(self) -> None:
        """It is silent: nothing refuses a connection."""
        server = self.stage.servers["payments"]
        await self._silent(server.pid, "[data-stale*=payments]", group=True)

    async def _stop_sidecar(self) -> None:
        await self._silent(self.stage.sidecar.pid, "[data-stale]")

    async def _silent(self, pid: int, mark: str, *, group: bool = False) -> None:
        pids = [pid, *(children(pid) if group else [])]
        began = time.time()
        for each in pids:
            os.kill(each, signal.SIGSTOP)
        try:
            while (silent_s := time.time() - began) < SILENT_S:
                await asyncio.sleep(0.25)
                self.looks += 1
                shown = await self.page.locator(mark).count()
                if silent_s > STALE_S and not shown:
                    self.unmarked.append(f"{mark} after {silent_s:.1f} s")
        finally:
            for each in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGCONT)
            self.disturbed.append((began, time.time() + 3.0))
        await self.page.locator("[data-stale]").first.wait_for(state="detached", timeout=60_000)

    async def _shows(self, name: str) -> None:
        began = time.time() * 1000
        self.happened.setdefault(name, began)
        async with asyncio.timeout(60):
            while not await self.page.evaluate("(name) => name in window.__first", name):
                await asyncio.sleep(0.1)

    # The comparison.

    async def compared(self) -> dict[str, Any]:
        end = time.time() + SHOWN_S
        first: dict[str, float] = {}
        while time.time() < end:
            first = await self.page.evaluate("window.__first")
            if not self.happened.keys() - first.keys():
                break
            await asyncio.sleep(0.2)
        missed = [f"not shown: {name}" for name in sorted(self.happened.keys() - first.keys())]
        missed += await self._differences()
        took = sorted(
            max(first[name] - at, 0.0)
            for name, at in self.happened.items()
            if name in first and not self._is_disturbed(at / 1000)
        )
        return {
            "events": len(self.happened),
            "missed": len(missed),
            "stale_unmarked": len(self.unmarked),
            "p95_ms": round(took[int(len(took) * 0.95)], 1) if took else None,
            "median_ms": round(took[len(took) // 2], 1) if took else None,
            "looks": self.looks,
            "failures": [*missed, *self.unmarked, *self.seen.errors][:20],
        }

    def _is_disturbed(self, at: float) -> bool:
        return any(began - 1.0 <= at <= ended for began, ended in self.disturbed)

    async def _differences(self) -> list[str]:
        """Between the page and the command line, once nothing changes any more."""
        found: list[str] = []
        for _ in range(20):
            found = [
                *await self._compare("transactions", self._listed, "Object.fromEntries(rowsNow())"),
                *await self._compare("in doubt", self._prepared, "Object.fromEntries(doubtNow())"),
                *await self._compare("audit", self._audited, "Object.fromEntries(actsNow())"),
            ]
            if not found:
                break
            await asyncio.sleep(0.5)
        return found

    async def _compare(
        self, what: str, said: Callable[[], Awaitable[dict[str, Any]]], expression: str
    ) -> list[str]:
        told = await said()
        shown: dict[str, Any] = await self.page.evaluate(f"(() => {{ {NOW} return {expression}; }})()")
        return [
            f"{what} {name}: the command line says {told.get(name)}, the page {shown.get(name)}"
            for name in told.keys() | shown.keys()
            if told.get(name) != shown.get(name)
        ]

    async def _listed(self) -> dict[str, Any]:
        return {
            one["txid"]: [
                one["decision"],
                one["finished"],
                sorted({b["participant"] for b in one["branches"]}),
            ]
            for one in await self.stage.undoubt("tx", "list", "--limit", "10000")
        }

    async def _prepared(self) -> dict[str, Any]:
        told = await self.stage.undoubt("indoubt", "list")
        return {one["gid"]: [one["standing"], one["why"]] for one in told["branches"]}

    async def _audited(self) -> dict[str, Any]:
        acts = await self.stage.undoubt("audit", "--limit", "500")
        return {f"{one['at']} {one['subject']}": [one["verb"], one["result"]] for one in acts}


NOW = """
const words = { committed: 'commit', aborted: 'abort' };
const rowsNow = () => [...known.rows.values()].filter((row) => row.recorded)
  .map((row) => [row.id, [words[row.outcome] || row.outcome, row.finished, row.participants]]);
const doubtNow = () => branches(() => true).map((one) => [one.gid, [one.standing, one.why]]);
const actsNow = () => part('audit').acts.map((one) => [`${one.at} ${one.subject}`, [one.verb, one.result]]);
"""
