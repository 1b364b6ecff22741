"""The states of the console's page: how each is made, and what it has to show."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.prove.console_stage import NAMES, System, begin, transfer
from tests.undoubt.console.browser import Opened
from tests.undoubt.sidecar.stage import token
from undoubt.coordinator.ledger.acting import new_act
from undoubt.coordinator.ledger.contract import Heuristic, record_of
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.ids import Gid, Protocol, SessionKey

EVENTS = "**/v1/console/events"


@dataclass
class Scene:
    """What the states have made so far: ids by name."""

    stage: System
    ids: dict[str, str] = field(default_factory=dict)
    tasks: list[asyncio.Task[object]] = field(default_factory=list)
    session: object = None


Act = Callable[[Scene], Awaitable[None]]
Show = Callable[[Scene, Opened], Awaitable[None]]
Text = str | Callable[[Scene], str]


async def _nothing(_: Scene) -> None:
    return


async def _as_it_is(_: Scene, __: Opened) -> None:
    return


@dataclass
class State:
    """``client``: who signs in before ``show``; empty: no client does. ``always``: later states need what
    ``prepare`` makes. ``large``: it is looked at on a 4k screen as well."""

    name: str
    show: Show = _as_it_is
    texts: tuple[Text, ...] = ()
    prepare: Act = _nothing
    undo: Act = _nothing
    client: str = "operator"
    always: bool = False
    on_node: bool = False
    large: bool = False


def planted(where: str) -> str:
    return f"<img src=x onerror=planted('{where}')>"


def going(place: str | Callable[[Scene], str]) -> Show:
    async def show(scene: Scene, seen: Opened) -> None:
        await seen.go(place(scene) if callable(place) else place)

    return show


def of(name: str) -> Callable[[Scene], str]:
    """The page of a transaction."""
    return lambda scene: f"tx/{scene.ids[name]}"


# What is made.


async def transfers(scene: Scene) -> None:
    async with scene.stage.http() as http:
        for row in range(1, 21):
            id_ = await begin(http, *transfer(row))
            answer = await http.post(f"/v1/transactions/{id_}/commit")
            assert answer.status_code == 200, answer.text
            scene.ids["committed"] = id_


async def aborted(scene: Scene) -> None:
    """By an error at PREPARE, whose text comes from a trigger."""
    text = f"no more credit {planted('SQL error')}".replace("'", "''")
    await scene.stage.sql(
        "payments",
        "create table refused (id int)",
        "create function refuses() returns trigger language plpgsql as"
        f" $$ begin raise exception '{text}'; end $$",
        "create constraint trigger refuses after insert on refused deferrable initially deferred"
        " for each row execute function refuses()",
    )
    async with scene.stage.http() as http:
        id_ = await begin(http, *transfer(30), ("payments", "insert into refused values (1)"))
        answer = await http.post(f"/v1/transactions/{id_}/commit")
        assert answer.status_code == 409, answer.text
    scene.ids["aborted"] = id_


async def waiting(scene: Scene) -> None:
    """One transaction holds a row, and another one waits for it."""
    async with scene.stage.http() as http:
        scene.ids["holds"] = await begin(http, *transfer(40))
        begun = await http.post("/v1/transactions", json={"timeout_ms": 600_000})
        scene.ids["waits"] = begun.json()["id"]
        name, sql = transfer(40)[0]

    async def wait() -> None:
        async with scene.stage.http() as http:
            path = f"/v1/transactions/{scene.ids['waits']}/statements"
            await http.post(path, json={"participant": name, "sql": sql}, timeout=600)

    scene.tasks.append(asyncio.create_task(wait()))


async def left_behind(scene: Scene) -> None:
    """Of a coordinator that is gone: prepared branches of a dropped session, of a live one, and with a
    recorded COMMIT, and a branch that somebody ended against it."""
    async with scene.stage.ledger() as ledger:
        session = await ledger.open_session(f"shop {planted('session')}", 3600.0)
        key = SessionKey(session.key)
        names = ["active", "heuristic", *(f"to end {number}" for number in range(1, 5))]
        for seq, name in enumerate(names, 1):
            txid = session.txid(seq)
            gids = [
                Gid(ledger.ledger_id, Protocol.TWO_PHASE, txid, number, participant).tagged(key)
                for number, participant in enumerate(NAMES, 1)
            ]
            scene.ids[name] = str(txid)
            if name != "heuristic":
                for gid in gids:
                    await _prepare(scene, gid.participant, str(gid), 60 + seq)
                continue
            await ledger.decide(txid, Decision.COMMIT, [record_of(gid) for gid in gids])
            note = f"the row was rolled back by hand {planted('note')}"
            found = Heuristic(gids[1], Settled.HEURISTIC_ROLLBACK, Decision.COMMIT, time.time(), note)
            await ledger.record_heuristic(found)
            await ledger.finish([txid])
        false = Gid(ledger.ledger_id, Protocol.TWO_PHASE, session.txid(99), 1, "orders", "0" * 20)
        await _prepare(scene, "orders", str(false), 90)
        for number in (1, 2):
            await ledger.lock(LockRequest("nightly settlement", session.id, session.nonce, number), wait=True)
        await ledger.record_act(new_act("tx resolve --rollback", scene.ids["heuristic"], planted("act")))


async def _prepare(scene: Scene, participant: str, gid: str, row: int) -> None:
    name = gid.replace("'", "''")
    await scene.stage.sql(
        participant,
        "begin",
        f"update account set balance = 0 where id = {row}",
        f"prepare transaction '{name}'",
    )


async def forged(scene: Scene) -> None:
    """Scripts in a foreign gid and in the role that prepared it, and in the name of a participant."""
    role = planted("role").replace('"', '""')
    await scene.stage.sql("payments", f'create role "{role}" superuser')
    name = planted("gid").replace("'", "''")
    await scene.stage.sql(
        "payments",
        f'set role "{role}"',
        "begin",
        "update account set balance = 0 where id = 80",
        f"prepare transaction '{name}'",
    )
    async with scene.stage.ledger() as ledger:
        session = await ledger.open_session("names", 3600.0)
        txid = session.txid(1)
        gid = Gid(ledger.ledger_id, Protocol.TWO_PHASE, txid, 1, planted("participant"))
        gid = gid.tagged(SessionKey(session.key))
        await ledger.decide(txid, Decision.ABORT, [record_of(gid)], cause=planted("cause"))
        scene.ids["named"] = str(txid)


# What is looked at.


async def wrong_token(_: Scene, seen: Opened) -> None:
    await seen.page.get_by_label("Token").fill("undoubt_nothing")
    await seen.page.keyboard.press("Enter")


async def shop_token(_: Scene, seen: Opened) -> None:
    await seen.page.get_by_label("Token").fill(token("shop"))
    await seen.page.keyboard.press("Enter")


async def connecting(_: Scene, seen: Opened) -> None:
    await seen.page.route(EVENTS, lambda _: None)
    await shop_token(_, seen)


async def unreachable(_: Scene, seen: Opened) -> None:
    await seen.page.route(EVENTS, lambda route: route.abort())
    await shop_token(_, seen)


async def disconnected(_: Scene, seen: Opened) -> None:
    await seen.go("transactions")
    await seen.page.locator("#rows-transactions").wait_for()
    await seen.page.route(EVENTS, lambda route: route.abort())
    await seen.page.evaluate("reading.abort()")


async def no_match(_: Scene, seen: Opened) -> None:
    await seen.go("transactions")
    await seen.page.get_by_label("Search").fill("nothing like this")


async def in_doubt_only(_: Scene, seen: Opened) -> None:
    await seen.go("transactions")
    await seen.page.get_by_label("State").select_option("in doubt")


async def asked_key(_: Scene, seen: Opened) -> None:
    await no_match(_, seen)
    await seen.page.get_by_role("button", name="ask the ledger").click()


async def dialog(scene: Scene, seen: Opened) -> None:
    await seen.go(of("active")(scene))
    await seen.page.get_by_role("button", name="End this transaction").click()
    await seen.page.get_by_role("dialog").wait_for()


async def unsafe(scene: Scene, seen: Opened) -> None:
    await dialog(scene, seen)
    await seen.page.get_by_label("Commit all prepared branches").check()
    await seen.page.get_by_label("Type the id").fill(scene.ids["active"])


async def refused(scene: Scene, seen: Opened) -> None:
    """Between the dialog and the act something has changed."""
    await dialog(scene, seen)
    await seen.page.get_by_label("Roll back all prepared branches").check()
    await seen.page.get_by_label("Type the id").fill(scene.ids["active"])
    await seen.page.evaluate("act.one.shown = '0'.repeat(32)")
    await seen.page.get_by_role("button", name="Do it").click()


async def forgetting(scene: Scene, seen: Opened) -> None:
    await seen.go(of("heuristic")(scene))
    await seen.page.get_by_role("button", name="Forget the outcome").click()
    await seen.page.get_by_role("dialog").wait_for()


async def ended(scene: Scene, seen: Opened) -> None:
    """Each window ends a transaction of its own."""
    name = next(name for name in scene.ids if name.startswith("to end"))
    id_ = scene.ids.pop(name)
    await seen.go(f"tx/{id_}")
    await seen.page.get_by_role("button", name="End this transaction").click()
    await seen.page.get_by_label("Roll back all prepared branches").check()
    await seen.page.get_by_label("Type the id").fill(id_)
    await seen.page.get_by_role("button", name="Do it").click()
    await seen.page.locator("#answer", has_text="done").wait_for()


SCROLL_ON = """
(box) => new Promise((done) => {
  const before = box.scrollTop;
  box.scrollTop += box.clientHeight / 2;
  requestAnimationFrame(() => setTimeout(() => done(box.scrollTop === before)));
})
"""
"""Scrolls a list by half of what is in sight. The result is whether its end was in sight before."""


async def all_planted(scene: Scene, seen: Opened) -> None:
    """Every page that shows what anybody may have chosen."""
    wanted = {
        "heuristics": ["note"],
        "sessions": ["session"],
        "audit": ["act"],
        of("named")(scene): ["cause", "participant"],
        of("aborted")(scene): ["SQL error"],
        "transactions": ["SQL error"],
        "impostors": ["gid", "role"],
    }
    for place, names in wanted.items():
        await seen.go(place)
        await seen.page.locator("main .busy").first.wait_for(state="detached")
        for name in names:
            if not await seen.planted():
                await _scroll_to(seen, place, planted(name))


async def _scroll_to(seen: Opened, place: str, text: str) -> None:
    """Of a long list only the rows in sight are elements."""
    found, box = seen.page.get_by_text(text).first, seen.page.locator(f'[id="rows-{place}"]')
    while await box.count() and not await found.count():
        if await box.evaluate(SCROLL_ON):
            break
    await found.wait_for(state="attached")


async def kill_payments(scene: Scene) -> None:
    await scene.stage.servers["payments"].kill()


async def start_payments(scene: Scene) -> None:
    await scene.stage.servers["payments"].start()


async def stop_follower(scene: Scene) -> None:
    leader = await scene.stage.nodes.leader()
    number = next(each for each in (3, 2, 1) if each != leader)
    scene.ids["stopped"] = str(number)
    os.kill(scene.stage.nodes.pids[number], signal.SIGSTOP)


async def go_on(scene: Scene) -> None:
    os.kill(scene.stage.nodes.pids[int(scene.ids["stopped"])], signal.SIGCONT)


async def kill_majority(scene: Scene) -> None:
    for number in (2, 3):
        await scene.stage.nodes.kill(number)


async def start_majority(scene: Scene) -> None:
    await asyncio.gather(*(scene.stage.nodes.run(number) for number in (2, 3)))
    await scene.stage.nodes.leader()


async def many(_: Scene, seen: Opened) -> None:
    """Rows of ten thousand transactions, scrolled."""
    await seen.go("transactions")
    await seen.page.evaluate(
        "takeRows(Array.from({ length: 10000 }, (_, n) => ({ id: `9-0123456789abcdef.${n}`,"
        " state: 'committed', outcome: 'committed', recorded: true, finished: true, protocol: '2pc',"
        " participants: ['orders', 'payments'], at: serverNow() - n, coordinator: 'shop', reason: '' })))"
    )
    await seen.page.locator("#found", has_text="10,0").wait_for()
    await seen.page.locator("#rows-transactions").evaluate("(box) => { box.scrollTop = 200000 }")
    await seen.page.locator("#rows-transactions", has_text="9-0123456789abcdef").first.wait_for()


STATES = (
    State("sign-in", client="", texts=("Show the token",)),
    State("token-refused", wrong_token, ("The token was refused",), client=""),
    State("not-allowed", shop_token, ("Not allowed",), client=""),
    State("connecting", connecting, ("Connecting…",), client=""),
    State("unreachable", unreachable, ("No connection yet",), client=""),
    State("overview-empty", texts=("Nothing needs you now.",)),
    State("transactions-empty", going("transactions"), ("No transaction yet.",)),
    State("heuristics-empty", going("heuristics"), ("No heuristic outcome is recorded.",)),
    State("impostors-empty", going("impostors"), ("Nothing else is prepared.",)),
    State("locks-empty", going("locks"), ("No lock is held.",)),
    State(
        "transactions",
        going("transactions"),
        (lambda scene: scene.ids["committed"],),
        prepare=transfers,
        always=True,
        large=True,
    ),
    State("committed", going(of("committed")), ("decision COMMIT", "Branches"), always=True),
    State("aborted", going(of("aborted")), ("no more credit",), prepare=aborted, always=True),
    State("waits", going(of("waits")), ("waits for",), prepare=waiting),
    State("in-doubt", in_doubt_only, ("in doubt",), prepare=left_behind, always=True),
    State("overview", texts=("doctor",), large=True),
    State("one-in-doubt", going(of("active")), ("Explained",), large=True),
    State("only-looks", going(of("active")), ("a client with the role operate",), client="watcher"),
    State("dialog", dialog, ("What is recorded",), large=True),
    State("dialog-unsafe", unsafe, ("This is not the safe way",)),
    State("act-refused", refused, ("has changed since it was shown",)),
    State("heuristic", going(of("heuristic")), ("heuristic rollback",)),
    State("forgetting", forgetting, ("Forget a heuristic outcome",)),
    State("sessions", going("sessions"), ("open",)),
    State("locks", going("locks"), ("nightly settlement",)),
    State("heuristics", going("heuristics"), ("heuristic rollback",)),
    State("impostors", going("impostors"), ("impostor",)),
    State("audit", going("audit"), ("tx resolve --rollback",)),
    State("unknown", going("tx/99-0123456789abcdef.1"), ("either the ledger nor any participant",)),
    State("no-match", no_match, ("No transaction matches.",)),
    State("key", asked_key, ("No transaction has that key.",)),
    State("ten-thousand", many, ("of 10,0",), large=True),
    State("disconnected", disconnected, ("disconnected: as of",)),
    State("database-down", texts=("does not answer",), prepare=kill_payments, undo=start_payments),
    State("node-silent", texts=("silent",), prepare=stop_follower, undo=go_on),
    State("node-console", texts=("node 1",), on_node=True),
    State("no-leader", texts=("No node leads",), prepare=kill_majority, undo=start_majority),
    State("act-done", ended, ("Roll back all prepared branches",)),
    State("planted", all_planted, prepare=forged),
)
