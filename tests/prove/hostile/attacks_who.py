"""Attacks on who may: tokens, names of the server, ids, participants, capabilities, keys."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator

from tests.prove.hostile.wire import Answer, Request, ask, post
from tests.prove.hostile.world import ATTACKER, LATE, LOOK_S, REVOKED, VICTIM, WATCHER, World
from tests.undoubt.sidecar.stage import token
from undoubt.serve.sidecar.tokens import hash_of

PATHS = ("/v1/transactions", "/v1/participants", "/metrics", "/leader", "/openapi.json", "/readyz?verbose")
RELOAD_S = 20.0
SQL_NAMES = (
    "'; drop table account; --",
    "orders'; commit; --",
    'orders"; update account set balance = 0; --',
    "$1",
    "%00",
    "orders%20or%201=1",
    "../../etc/passwd",
    "x' or '1'='1",
    "\\';select pg_sleep(60);--",
    "1; prepare transaction 'mine'",
)


def changing(id_: str, participant: str = "orders") -> Iterator[tuple[str, str, object]]:
    """Everything that would change a transaction: method, path, body."""
    tx = f"/v1/transactions/{id_}"
    yield "POST", f"{tx}/branches", {"participant": participant}
    yield "DELETE", f"{tx}/branches/1", None
    yield "DELETE", f"{tx}/branches/2", None
    steal = "update account set balance = balance + 1000000 where id = 1"
    yield "POST", f"{tx}/statements", {"participant": participant, "sql": steal}
    yield "POST", f"{tx}/commit", None
    yield "POST", f"{tx}/rollback", None


def request(
    method: str,
    path: str,
    body: object = None,
    *,
    token: str | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> Request:
    raw = b"" if body is None else json.dumps(body).encode()
    return Request(method, path, raw, token, headers=headers)


def tokens(world: World) -> None:
    """No token, wrong, expired and revoked ones, and those without the role."""
    _revoke(world)
    good = token(VICTIM)
    shown = [
        None, "", "x", good[:-1], good + "x", good.upper(), hash_of(good), f"{good} {good}", f"{good},{good}",
        good[::-1], "undoubt_", "null", "*", "é" * 10, "a" * 8000, token(LATE), token(REVOKED),
        token(WATCHER),
    ]  # fmt: skip
    requests = []
    for each in shown:
        reads = each != token(WATCHER)
        requests += [request("GET", path, token=each) for path in PATHS if reads]
        requests.append(post("/v1/transactions", {"timeout_ms": 900_000}, token=each))
        for bait in world.baits:
            requests += [request(*one, token=each) for one in changing(bait.work.id)]
            if reads:
                requests.append(request("GET", f"/v1/transactions/{bait.work.id}", token=each))
    other = [
        (("Authorization", f"Basic {base64.b64encode(good.encode()).decode()}"),),
        (("Authorization", f"Digest {good}"),),
        (("Authorization", good),),
        (("Proxy-Authorization", f"Bearer {good}"),),
        (("X-Forwarded-User", VICTIM), ("X-Forwarded-For", "127.0.0.1"), ("Forwarded", "for=unix:")),
        (("Cookie", f"token={good}; Authorization=Bearer {good}"),),
        (("Authorization", "Bearer x"), ("Authorization", f"Bearer {token(WATCHER)}")),
    ]
    for headers in other:
        requests.append(Request("POST", "/v1/transactions", b"{}", headers=headers))
        for bait in world.baits[:2]:
            requests += [request(*one, headers=headers) for one in changing(bait.work.id)]
    requests += [
        Request("POST", f"/v1/transactions?access_token={good}&token={good}", b"{}"),
        Request("POST", f"/v1/transactions#{good}", b"{}"),
    ]
    world.ask(*requests)


def _revoke(world: World) -> None:
    """The token leaves the configuration, and SIGHUP tells so."""
    stage = world.stage
    text = stage.config.read_text()
    stage.config.write_text(text.replace(hash_of(token(REVOKED)), hash_of("nobody has this")))
    assert stage.process is not None
    stage.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + RELOAD_S
    while ask(world.port, [request("GET", "/v1/participants", token=token(REVOKED))])[0].status != 401:
        if time.monotonic() > end:
            world.changed.append("tokens: a revoked token counts after SIGHUP")
            return
        time.sleep(LOOK_S)


def hosts(world: World) -> None:
    """Pages of a stranger whose name resolves to this address, or that just send: even with a token."""
    port = world.port
    good = token(VICTIM)
    names = [
        "evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", f"127.0.0.1.evil.example:{port}",
        "localhost.evil.example", "evil.example#127.0.0.1", "evil.example/127.0.0.1",
        "127.0.0.1@evil.example",
        "evil.example@127.0.0.1", "127.0.0.1/evil.example", "127.0.0.1?evil.example", "0.0.0.0", "0", "127.1",
        "2130706433", "0x7f.1", "[::]", "[::ffff:127.0.0.1]", "169.254.169.254", "", " ", "127.0.0.1:x",
        "127.0.0.1 evil.example", "evil.example, 127.0.0.1", "http://127.0.0.1", "127.0.0.1\tevil",
    ]  # fmt: skip
    requests = []
    for name in names:
        requests += [Request("GET", path, token=good, host=name) for path in PATHS]
        requests.append(Request("POST", "/v1/transactions", b"{}", good, host=name))
        for bait in world.baits[:3]:
            for method, path, body in changing(bait.work.id):
                raw = b"" if body is None else json.dumps(body).encode()
                requests.append(Request(method, path, raw, good, host=name))
    origins = [
        "http://evil.example", "null", "", f"http://127.0.0.1:{port + 1}", "http://127.0.0.1", "file://",
        f"http://127.0.0.1:{port}.evil.example", f"http://evil.example:{port}",
        "http://[", "chrome-extension://x",
    ]  # fmt: skip
    for origin in origins:
        headers = (("Origin", origin), ("Sec-Fetch-Site", "cross-site"))
        requests.append(Request("POST", "/v1/transactions", b"{}", good, headers=headers))
        requests.append(Request("OPTIONS", "/v1/transactions", token=good, headers=headers))
        for bait in world.baits[:3]:
            requests += [request(*one, token=good, headers=headers) for one in changing(bait.work.id)]
    two = (("Host", "evil.example"),)
    requests += [Request("POST", "/v1/transactions", b"{}", good, headers=two)]
    answers = world.ask(*requests)
    if any(b"access-control" in answer.head.lower() for answer in answers):
        world.changed.append("hosts: an answer lets pages of others read it (CORS)")
    forms = [
        Request("POST", "/v1/transactions", b"{}", good, headers=(("Content-Type", kind),))
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "")
    ]
    world.ask(*forms)


def others(world: World) -> None:
    """Transactions of another client, by their ids, and by forged ones and by names of branches."""
    mine = token(ATTACKER)
    requests = []
    for id_ in [bait.work.id for bait in world.baits] + list(world.ended):
        for participant in ("orders", "payments", "scratch"):
            requests += [request(*one, token=mine) for one in changing(id_, participant)]
        session, _, seq = id_.rpartition(".")
        forged = [
            f"{session}.{int(seq) + step}" for step in (-2, -1, 1, 2, 10**6, 2**63)
        ] + [
            f"{id_} ", f"%20{id_}", f"{id_}%00", f"{id_}/", f"{id_}//", f"./{id_}", f"x/../{id_}",
            f"{id_};", id_.upper(),
            id_.replace(".", "%2e"), f"{id_}%2f..%2f{id_}", f"0{id_}", f"{session}.0{seq}",
            f"{session}.+{seq}",
            f"{session}.{seq}e0", "0-0000000000000000.0", "-1-x.y",
        ]  # fmt: skip
        for each in forged:
            requests += [request(*one, token=mine) for one in changing(each)]
    for bait in world.baits:
        for gid in bait.gids:
            named = gid.replace(":", "%3A")
            requests += [request(*one, token=mine) for one in changing(named)]
            requests.append(
                request("DELETE", f"/v1/transactions/{bait.work.id}/branches/{named}", token=mine)
            )
        for number in ("0", "-1", "1.0", "01", "99999999999999999999", "%31", "1%00", "²", "\uff11"):
            path = f"/v1/transactions/{bait.work.id}/branches/{number}"
            requests.append(request("DELETE", path, token=mine))
        requests.append(request("GET", f"/v1/transactions/{bait.work.id}", token=mine))
        waits = (("Prefer", "wait=1"),)
        requests.append(request("GET", f"/v1/transactions/{bait.work.id}", token=mine, headers=waits))
    for state in ("", "active", "in_doubt", "committed", "x", "active' or '1'='1", "%00"):
        requests.append(request("GET", f"/v1/transactions?state={state.replace(' ', '+')}", token=mine))
    requests += [
        request(*one, token=token(WATCHER)) for bait in world.baits for one in changing(bait.work.id)
    ]
    world.ask(*requests)


def participants(world: World) -> None:
    """Databases that the attacker's token does not name, from its own transaction; and SQL for names."""
    mine = token(ATTACKER)
    id_ = begun(world)
    tx = f"/v1/transactions/{id_}"
    requests = []
    for name in ("orders", "payments", "Orders", "orders ", "ORDERS", "*", "", "orders\0", *SQL_NAMES):
        steal = {"participant": name, "sql": "update account set balance = 0 where id = 1"}
        requests.append(post(f"{tx}/branches", {"participant": name}, token=mine))
        requests.append(post(f"{tx}/statements", steal, token=mine))
        requests.append(post("/v1/transactions", {"participants": [name]}, token=mine))
        twice = f'{{"participant": "scratch", "participant": {json.dumps(name)}}}'.encode()
        requests.append(Request("POST", f"{tx}/branches", twice, mine))
        other = f'{{"participant": {json.dumps(name)}, "sql": "select 1", "participant": "scratch"}}'.encode()
        requests.append(Request("POST", f"{tx}/statements", other, mine))
    for name in SQL_NAMES:
        requests += [
            request(*one, token=mine) for one in changing(name.replace(" ", "%20").replace('"', "%22"))
        ]
    world.ask(*requests)
    ended(world, id_)
    for name in ("orders", "payments"):
        id_ = begun(world)
        steal = {"participant": name, "sql": "update account set balance = 0 where id = 1"}
        world.ask(
            post(f"/v1/transactions/{id_}/statements", steal, token=mine),
            post(f"/v1/transactions/{id_}/commit", token=mine),
        )
        ended(world, id_)


def capabilities(world: World) -> None:
    """Forged and stolen headers ``Undoubt-Transaction``, and such as call the attacker's own server."""
    mine = token(ATTACKER)
    with listener() as (address, called):
        for bait in world.baits:
            if not bait.join:
                raise AssertionError("the sidecar gives no capability")
            for header in forged(bait.join, address, world.baits):
                for who in (None, mine, token(WATCHER), token(LATE)):
                    headers = (("Undoubt-Transaction", header),)
                    calls = [one for part in ("orders", "scratch") for one in changing(bait.work.id, part)]
                    world.ask(*(request(*one, token=who, headers=headers) for one in calls))
            stolen = (("Undoubt-Transaction", bait.join),)
            for who in (None, "x", mine, token(WATCHER)):
                for elsewhere in world.baits:
                    for part in ("orders", "payments", "scratch"):
                        calls = list(changing(elsewhere.work.id, part))
                        world.ask(*(request(*one, token=who, headers=stolen) for one in calls))
            twice = (*stolen, ("Undoubt-Transaction", "x"))
            world.ask(*(request(*one, token=mine, headers=twice) for one in changing(bait.work.id)))
        if called:
            world.changed.append(f"capabilities: the sidecar called {address}")
    if any(bait.join in world.stage.log for bait in world.baits):
        world.changed.append("capabilities: one is in the log")


def forged(join: str, address: str, baits: object) -> Iterator[str]:
    """Headers like this one."""
    payload, _, seal = join.partition(".")
    told = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))

    def sealed(**other: object) -> str:
        raw = json.dumps({**told, **other}, separators=(",", ":")).encode()
        return f"{base64.urlsafe_b64encode(raw).decode().rstrip('=')}.{seal}"

    yield sealed(participants=["*"])
    yield sealed(participants=["orders", "payments", "scratch"])
    yield sealed(participants=["scratch"])
    yield sealed(expires=9e18)
    yield sealed(expires=-1)
    yield sealed(owner=address)
    yield sealed(owner=address, participants=["*"])
    yield sealed(owner="http://169.254.169.254:80")
    yield sealed(owner="file:///etc/passwd")
    yield sealed(v=2)
    yield sealed(ledger="other")
    yield sealed(more=1)
    yield f"{payload}."
    yield payload
    yield f".{seal}"
    yield f"{payload}.{seal[::-1]}"
    yield f"{payload}.{seal[:-4]}"
    yield f"{payload}.{seal}.{seal}"
    yield f"{payload}={seal}"
    yield "e30.e30"
    yield "." * 1000
    yield "A" * 9000
    yield "é.ü"


@contextlib.contextmanager
def listener() -> Iterator[tuple[str, list[str]]]:
    """The attacker's own server: its address, and who has called."""
    called: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(LOOK_S)
        stop = threading.Event()

        def listen() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    one, peer = door.accept()
                    called.append(str(peer))
                    one.close()

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}", called
        finally:
            stop.set()
            thread.join()


def keys(world: World) -> None:
    """Keys of the victim's requests, and one's own again: with another body, by another client, at once."""
    mine, theirs = token(ATTACKER), token(VICTIM)
    key = f"key-{random.randrange(10**9)}"
    victim = ask(
        world.port, [post("/v1/transactions", {"timeout_ms": 60_000}, token=theirs, Idempotency_Key=key)]
    )
    id_ = victim[0].json()["id"]
    world.take(victim, 1, reads=True)
    answers = world.ask(
        *(
            post("/v1/transactions", {"timeout_ms": 60_000}, token=mine, Idempotency_Key=key)
            for _ in range(20)
        ),
        *(
            post("/v1/transactions", {"timeout_ms": 9 + n}, token=mine, Idempotency_Key=key)
            for n in range(20)
        ),
    )
    given = {answer.json()["id"] for answer in answers if answer.status == 201}
    if len(given) != 1 or id_ in given:
        world.changed.append(
            f"keys: {len(given)} transactions, {id_ in given and 'one of the victim'}, of one key"
        )
    world.ask(*(post("/v1/transactions", token=who, Idempotency_Key=key) for who in (None, "x", token(LATE))))
    for own in given - {id_}:
        _one_note(world, own)
        ended(world, own)
    bad = [
        "",
        '""',
        '"',
        "a b",
        "x" * 256,
        "\\",
        '"a\\b"',
        "é",
        "'; drop table account; --",
        ",",
        "a, b",
        '"a";x=1',
    ]
    world.ask(*(post("/v1/transactions", [], token=mine, Idempotency_Key=each) for each in bad))
    _same_elsewhere(world)
    ended_by = ask(world.port, [post(f"/v1/transactions/{id_}/rollback", token=theirs)])
    world.take(ended_by, 1, reads=True)


def _one_note(world: World, id_: str) -> None:
    """The same statement with the same key, many times at once: it is done once."""
    body = {"participant": "scratch", "sql": "insert into notes values ('keys') returning tag"}
    path = f"/v1/transactions/{id_}/statements"
    found: list[list[Answer]] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(
                ask(
                    world.port,
                    [post(path, body, token=token(ATTACKER), Idempotency_Key="note") for _ in range(10)],
                )
            )
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers in found:
        world.take(answers, 10)
    [rows] = world.ask(
        post(path, {"participant": "scratch", "sql": "select tag from notes"}, token=token(ATTACKER))
    )
    if rows.json()["rows"] != [["keys"]] * (world.notes["keys"] + 1):
        world.changed.append(f"keys: one statement was run more than once: {rows.body!r}")


def _same_elsewhere(world: World) -> None:
    """A key of one transaction's commit is no answer about another one."""
    first, second = begun(world), begun(world)
    for id_, verb in ((first, "rollback"), (second, "commit"), (second, "rollback")):
        host = f"127.0.0.1:{world.port}?"
        ask_ = Request(
            "POST",
            f"/v1/transactions/{id_}/{verb}",
            b"",
            token(ATTACKER),
            host,
            (("Idempotency-Key", "same"),),
        )
        [answer] = world.ask(ask_)
        if answer.status == 200 and id_ not in answer.body.decode():
            world.changed.append(f"keys: {verb} of {id_} was answered {answer.body!r}")
    ended(world, first)
    ended(world, second)


def begun(world: World) -> str:
    """A transaction of the attacker's own, by right."""
    [answer] = world.ask(post("/v1/transactions", {"timeout_ms": 120_000}, token=token(ATTACKER)))
    assert answer.status == 201, answer
    return str(answer.json()["id"])


def ended(world: World, id_: str) -> None:
    """It is rolled back."""
    world.ask(post(f"/v1/transactions/{id_}/rollback", token=token(ATTACKER)))
