"""What the stream and the other addresses say, to whom, and what they refuse."""

from __future__ import annotations

import json
import time
from typing import NoReturn

import pytest

from tests.undoubt.console.reading import STREAM, client, reading
from tests.undoubt.console.rig import Rig, rig
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.contract import Heuristic, record_of
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.participants.contract import Decision, PreparedBranch, Settled
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Foreign, SessionKey
from undoubt.serve.console import app as console_app
from undoubt.serve.console.readings import Since, participant_part
from undoubt.serve.console.settings import ConsoleSettings

# Who may.


async def test_the_page_needs_no_client_and_has_no_data(one: Rig) -> None:
    """Broken if a browser cannot load the page before its user has signed in."""
    async with client(one.base, None) as http:
        page = await http.get("/")
        assert page.status_code == 200
        assert one.ledger.ledger_id not in page.text
        assert (await http.head("/")).headers["content-length"] == page.headers["content-length"]
        assert (await http.post("/")).status_code == 405


@pytest.mark.parametrize("path", ["events", "me", "transaction?id=1-0123456789abcdef.1", "branch?gid=x"])
async def test_what_is_read_needs_a_client_that_may_look(one: Rig, path: str) -> None:
    """Broken if anybody at the port, or any application, sees all transactions."""
    async with client(one.base, None) as http:
        assert (await http.get(f"/v1/console/{path}")).status_code == 401
    async with client(one.base, "shop") as http:
        refused = await http.get(f"/v1/console/{path}")
        assert refused.status_code == 403
        assert refused.json()["name"] == "NotAllowed"


async def test_pages_of_other_servers_are_refused(one: Rig) -> None:
    """Broken if a page elsewhere, or a name that was bound to this address, can use the console."""
    async with client(one.base, "operator", Origin="http://evil.example") as http:
        assert (await http.get("/v1/console/me")).status_code == 403
    async with client(one.base, "operator", Host="evil.example") as http:
        for path in ("/", "/v1/console/me"):
            assert (await http.get(path)).status_code == 421


async def test_a_removed_token_ends_the_stream(one: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if whoever has opened a page sees everything for as long as the page stays open."""
    monkeypatch.setattr(console_app, "RECHECK_S", 0.0)
    async with reading(one.base) as seen:
        await seen.until(lambda: seen.beats)
        one.doorkeeper.reload(ConsoleSettings().server)
        await seen.to_the_end()


async def test_streams_are_bounded(one: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if open pages can take all memory of the process."""
    monkeypatch.setattr(console_app, "STREAMS_MAX", 1)
    async with reading(one.base) as seen:
        await seen.until(lambda: seen.beats)
        async with client(one.base) as http:
            assert (await http.get(STREAM)).status_code == 429


async def test_one_client_cannot_take_all_streams(one: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if one token, in many pages, keeps all others from the console."""
    monkeypatch.setattr(console_app, "STREAMS_OF_CLIENT_MAX", 1)
    async with reading(one.base) as seen:
        await seen.until(lambda: seen.beats)
        async with client(one.base) as http:
            refused = await http.get(STREAM)
            assert refused.status_code == 429
            assert "1 consoles of watcher" in refused.json()["detail"]
        async with reading(one.base, "operator") as other:
            await other.until(lambda: other.beats)


# What it says.


async def test_the_time_of_the_server_is_told_to_those_who_may_look(one: Rig) -> None:
    """Broken if a page cannot tell how long ago the server sent what the page shows."""
    async with client(one.base) as http:
        before = time.time()
        told = (await http.get("/v1/console/clock")).json()["now"]
        assert before <= told <= time.time()


async def test_a_moment_by_the_clock_of_the_server_stays(one: Rig) -> None:
    """Broken if a page with many branches gets all of them again with every reading, since their ages are
    never read in the same instant."""
    gids = await one.prepared(1)
    since = Since()
    registry = one.console.participants
    parts = [await participant_part(one.ledger, registry, registry.get("orders"), since) for _ in range(3)]
    assert parts[0]["branches"][0]["gid"] == str(gids[0])
    assert parts[0] == parts[1] == parts[2]


async def test_a_decision_is_told_once_and_again_when_it_is_finished(one: Rig) -> None:
    async with reading(one.base) as seen:
        await seen.until(lambda: "transactions" in seen.parts)
        txid = str(await one.decided(1, finish=False))
        await seen.until(lambda: txid in seen.rows)
        assert seen.rows[txid]["state"] == "committed, not yet applied everywhere"
        await one.ledger.finish([one.session.txid(1)])
        await seen.until(lambda: seen.rows[txid]["finished"])
        assert seen.rows[txid]["state"] == "committed"


async def test_a_page_that_comes_later_gets_everything(one: Rig) -> None:
    async with reading(one.base) as first:
        for seq in range(1, 6):
            await one.decided(seq)
        await first.until(lambda: len(first.rows) == 5)
        async with reading(one.base) as second:
            await second.until(lambda: second.beats)
            assert second.rows == first.rows


async def test_what_is_in_doubt_is_told_until_it_is_not(one: Rig) -> None:
    gids = await one.prepared(1)
    async with reading(one.base) as seen:
        await seen.until(lambda: seen.parts.get("participant orders", {}).get("branches"))
        [branch] = seen.parts["participant orders"]["branches"]
        assert (branch["gid"], branch["standing"], branch["in_doubt"]) == (str(gids[0]), "active", True)
        one.participants["orders"].finish_by_hand(gids[0], Decision.ABORT)
        await seen.until(lambda: not seen.parts["participant orders"]["branches"])


async def test_of_many_branches_only_the_changes_are_told(one: Rig) -> None:
    """Broken if each new branch brings all that are in doubt again: with thousands, that is megabytes."""
    for seq in range(1, 51):
        await one.prepared(seq, votes=["orders"])
    async with reading(one.base) as seen:
        await seen.until(lambda: len(seen.lists.get("participant orders", ())) == 50)
        before = len(seen.changes)
        gid = (await one.prepared(51, votes=["orders"]))[0]
        await seen.until(lambda: str(gid) in seen.lists["participant orders"])
        one.participants["orders"].finish_by_hand(gid, Decision.ABORT)
        await seen.until(lambda: str(gid) not in seen.lists["participant orders"])
        assert sum(len(each["changed"]) + len(each["gone"]) for each in seen.changes[before:]) == 2


async def test_of_a_silent_participant_the_last_answer_is_told(one: Rig) -> None:
    """Broken if what is in doubt in a database is shown nowhere once the database has died."""
    gids = await one.prepared(1)
    async with reading(one.base) as seen:
        await seen.until(lambda: seen.parts.get("participant payments", {}).get("branches"))
        one.participants["payments"].down = ParticipantUnavailable("payments", "no route")
        await seen.until(lambda: seen.parts["participant payments"]["error"])
        last = seen.parts["participant payments"]["last"]
        assert [branch["gid"] for branch in last["branches"]] == [str(gids[1])]
        assert time.time() - 60 < last["at"] <= time.time()
        one.participants["payments"].down = None
        await seen.until(lambda: not seen.parts["participant payments"]["error"])
        assert seen.parts["participant payments"]["last"] is None


async def test_participants_of_one_database_show_no_impostors(one: Rig) -> None:
    """Broken if a branch is told to be an impostor because another participant of the same database lists it:
    the parts of the page are read one by one."""
    gid = (await one.prepared(1))[1]
    orders, payments = one.participants["orders"], one.participants["payments"]
    [branch] = await payments.in_doubt()
    orders.foreign.append(branch)
    async with reading(one.base) as seen:
        await seen.until(lambda: seen.parts.get("participant payments", {}).get("branches"))
        await seen.until(lambda: seen.parts.get("participant orders", {}).get("branches"))
        assert str(gid) not in {one["gid"] for one in seen.parts["participant orders"]["branches"]}
        payments.down = ParticipantUnavailable("payments", "no route")
        await seen.until(lambda: len(seen.parts["participant orders"]["branches"]) == 2)
        stands = {one["gid"]: one["standing"] for one in seen.parts["participant orders"]["branches"]}
        assert stands[str(gid)] == "not_known"


async def test_no_password_is_told(one: Rig) -> None:
    """Broken if an error's text brings the password of a connection string to everybody who may look."""
    dsn = "postgresql://app:hunter2@db.example/orders"
    one.participants["payments"].down = ParticipantUnavailable("payments", f"cannot reach {dsn}")
    gid = one.gids(1)[0]
    await one.ledger.decide(gid.txid, Decision.ABORT, [record_of(gid)], cause=f"dblink {dsn} failed")
    async with reading(one.base) as seen:
        await seen.until(lambda: seen.parts.get("participant payments", {}).get("error") and seen.rows)
        told = json.dumps([seen.parts, seen.rows])
    async with client(one.base) as http:
        told += (await http.get("/v1/console/transaction", params={"id": str(gid.txid)})).text
    assert "db.example" in told
    assert "hunter2" not in told


async def test_a_participant_that_does_not_answer_is_said_not_to(one: Rig) -> None:
    """Broken if nothing in doubt is shown where nothing is known; the other participant goes on."""
    one.participants["payments"].down = ParticipantUnavailable("payments", "no route")
    async with reading(one.base) as seen:
        await seen.until(lambda: seen.parts.get("participant payments", {}).get("error"))
        await seen.until(lambda: "participant orders" in seen.parts)
        assert seen.parts["participant orders"]["error"] is None


async def test_a_ledger_that_does_not_answer_leaves_everything_as_of_before(one: Rig) -> None:
    """Broken if old state looks current: the beat says when each part was read, and why not since."""
    await one.decided(1)
    async with reading(one.base) as seen:
        await seen.until(lambda: seen.rows)

        async def fail(**_: object) -> NoReturn:
            raise LedgerUnavailable("no quorum")

        one.ledger.transactions = fail  # type: ignore[method-assign]
        await seen.until(lambda: seen.beats)
        await seen.until(lambda: seen.parts["beat"]["parts"]["transactions"]["error"])
        about = seen.parts["beat"]["parts"]["transactions"]
        assert "no quorum" in about["error"]
        assert about["at"] <= seen.parts["beat"]["now"]
        before = about["at"]
        beats = seen.beats
        await seen.until(lambda: seen.beats >= beats + 2)
        assert seen.parts["beat"]["parts"]["transactions"]["at"] == before
        assert seen.rows


async def test_heuristics_change_the_state_of_their_transaction(one: Rig) -> None:
    txid = await one.decided(1)
    async with reading(one.base) as seen:
        await seen.until(lambda: str(txid) in seen.rows)
        gid = one.gids(1)[0]
        await one.ledger.record_heuristic(
            Heuristic(gid, Settled.HEURISTIC_ROLLBACK, Decision.COMMIT, time.time())
        )
        await seen.until(lambda: seen.rows[str(txid)]["outcome"] == "heuristic")
        await one.ledger.forget_heuristic(gid)
        await seen.until(lambda: seen.rows[str(txid)]["outcome"] == "committed")


async def test_foreign_transactions_are_shown_as_what_they_are(one: Rig) -> None:
    one.participants["orders"].foreign.append(
        PreparedBranch(Foreign("<script>planted('gid')</script>"), "someone", "orders", time.time(), 1.0)
    )
    async with reading(one.base) as seen:
        await seen.until(lambda: seen.parts.get("participant orders", {}).get("branches"))
        [branch] = seen.parts["participant orders"]["branches"]
        assert (branch["standing"], branch["in_doubt"]) == ("foreign", False)


async def test_the_end_of_the_process_ends_streams() -> None:
    """Broken if a process waits at its end for pages that stay open."""
    async with rig() as one, reading(one.base) as seen:
        await seen.until(lambda: seen.beats)
        one.console.feed.end()
        await seen.to_the_end()


async def test_nothing_is_asked_while_no_page_is_open(one: Rig) -> None:
    """Broken if a console that is not looked at asks all databases four times a second."""

    def read() -> set[str]:
        data = one.console.feed.beat().partition(b"data: ")[2]
        return {name for name, part in json.loads(data)["parts"].items() if part["at"]}

    async with client(one.base) as http:
        assert (await http.get("/v1/console/me")).status_code == 200
    assert read() == set()
    async with reading(one.base) as seen:
        await seen.until(lambda: "participant orders" in seen.parts)
    assert "participant orders" in read()


# Acting.


async def shown(one: Rig, id_: str) -> dict[str, object]:
    async with client(one.base) as http:
        answer = await http.get("/v1/console/transaction", params={"id": id_})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


async def test_only_a_client_that_operates_may_act(one: Rig) -> None:
    await one.prepared(1)
    txid = str(one.session.txid(1))
    body = {"txid": txid, "typed": txid, "shown": (await shown(one, txid))["shown"], "direction": "abort"}
    for name, status in ((None, 401), ("shop", 403), ("watcher", 403)):
        async with client(one.base, name) as http:
            assert (await http.post("/v1/console/resolve", json=body)).status_code == status
    assert one.participants["orders"].prepared
    async with client(one.base, "operator") as http:
        done = await http.post("/v1/console/resolve", json=body)
    assert done.status_code == 200, done.text
    assert [each["result"] for each in done.json()["results"]] == ["done", "done"]
    assert not one.participants["orders"].prepared
    act = (await one.ledger.acts(limit=10))[-1]
    assert (act.verb, act.subject) == ("tx resolve --rollback", txid)
    assert act.who.startswith("client operator of ")


@pytest.mark.parametrize(
    ("wrong", "status", "name"),
    [
        ({"typed": ""}, 422, "NotTyped"),
        ({"typed": "1-0123456789abcdef.1"}, 422, "NotTyped"),
        ({"shown": "0" * 32}, 409, "Changed"),
        ({"direction": "commit"}, 409, "Conflict"),
        ({"direction": "both"}, 422, "UsageError"),
        ({"txid": "nothing"}, 422, "UsageError"),
        ({"more": 1}, 422, "UsageError"),
    ],
)
async def test_what_was_not_confirmed_is_refused(
    one: Rig, wrong: dict[str, object], status: int, name: str
) -> None:
    """Broken if one click, or a page that shows what was true before, ends a transaction."""
    await one.prepared(1)
    txid = str(one.session.txid(1))
    body = {"txid": txid, "typed": txid, "shown": (await shown(one, txid))["shown"], "direction": "abort"}
    async with client(one.base, "operator") as http:
        refused = await http.post("/v1/console/resolve", json=body | wrong)
    assert (refused.status_code, refused.json()["name"]) == (status, name)
    assert len(one.participants["orders"].prepared) == len(one.participants["payments"].prepared) == 1


async def test_what_changed_since_it_was_shown_is_not_acted_on(one: Rig) -> None:
    await one.prepared(1)
    txid = str(one.session.txid(1))
    body = {"txid": txid, "typed": txid, "shown": (await shown(one, txid))["shown"], "direction": "abort"}
    await one.decided(1, finish=False)
    async with client(one.base, "operator") as http:
        refused = await http.post("/v1/console/resolve", json=body | {"heuristic": True})
    assert refused.status_code == 409
    assert refused.json()["name"] == "Changed"
    assert one.participants["orders"].prepared


async def test_a_heuristic_outcome_is_forgotten_once(one: Rig) -> None:
    await one.decided(1)
    gid = one.gids(1)[0]
    await one.ledger.record_heuristic(
        Heuristic(gid, Settled.HEURISTIC_ROLLBACK, Decision.COMMIT, time.time())
    )
    txid = str(gid.txid)
    body = {"gid": str(gid), "typed": txid, "shown": (await shown(one, txid))["shown"], "note": "repaired"}
    async with client(one.base, "watcher") as http:
        assert (await http.post("/v1/console/forget", json=body)).status_code == 403
    async with client(one.base, "operator") as http:
        assert (await http.post("/v1/console/forget", json=body | {"typed": "no"})).status_code == 422
        assert (await http.post("/v1/console/forget", json=body)).status_code == 200
        assert (await http.post("/v1/console/forget", json=body)).status_code == 409
    assert await one.ledger.heuristics() == []
    assert [(act.verb, act.note) for act in await one.ledger.acts(limit=1)] == [
        ("indoubt forget", "repaired")
    ]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [(b"{", "application/json", 400), (b"{}", "text/plain", 415), (b" " * 20_000, "application/json", 413)],
)
async def test_bodies_are_judged_before_anything_is_done(
    one: Rig, body: bytes, kind: str, status: int
) -> None:
    async with client(one.base, "operator") as http:
        answer = await http.post("/v1/console/resolve", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("transaction", 422),
        ("transaction?id=", 422),
        ("transaction?id=1&id=2", 422),
        ("transaction?id=%3Cscript%3E", 422),
        ("transaction?id=99-0123456789abcdef.1", 200),
        ("branch?participant=orders&gid=nothing", 404),
        ("nothing", 404),
        ("resolve", 405),
    ],
)
async def test_addresses_are_judged(one: Rig, path: str, status: int) -> None:
    async with client(one.base) as http:
        assert (await http.get(f"/v1/console/{path}")).status_code == status


async def test_locks_are_told_with_their_holders_and_waiters(one: Rig) -> None:
    """Broken if an operator cannot see who holds a lock, or who gets it next."""
    nonce = one.session.nonce
    requests = [LockRequest("nightly", one.session.id, nonce, number) for number in (1, 2)]
    for request in requests:
        await one.ledger.lock(request, wait=True)
    async with reading(one.base) as seen:
        await seen.until(lambda: seen.parts.get("locks", {}).get("locks"))
        told = seen.parts["locks"]["locks"]
        assert [(each["number"], each["place"], bool(each["token"])) for each in told] == [
            (1, 0, True),
            (2, 1, False),
        ]
        await one.ledger.unlock(requests[0])
        await seen.until(lambda: len(seen.parts["locks"]["locks"]) == 1)


async def test_a_key_leads_to_its_transaction(one: Rig) -> None:
    txid = one.session.txid(1)
    await one.ledger.claim_key(txid, "invoice 7", SessionKey(one.session.key).key_proof(txid, "invoice 7"))
    async with client(one.base) as http:
        for key, id_ in (("invoice 7", str(txid)), ("invoice 8", None)):
            answer = await http.get("/v1/console/key", params={"key": key})
            assert answer.json()["id"] == id_
