"""Attacks on HTTP itself: methods, bodies, JSON, framing, slowness, crowds."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterator

from tests.prove.hostile.attacks_who import begun, changing, ended
from tests.prove.hostile.wire import Line, Request, post
from tests.prove.hostile.world import (
    ATTACKER,
    BODY_BYTES_MAX,
    BODY_TIMEOUT_S,
    SECRET,
    TRANSACTIONS_MAX,
    VICTIM,
    World,
)
from tests.undoubt.sidecar.stage import token

SEED = 14
FUZZED = 3500
METHODS = (
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "MKCOL",
    "COPY", "MOVE",
    "LOCK", "PURGE", "M-SEARCH", "LINK", "SOURCE", "PRI", "get", "POST\t", "X" * 100, "",
)  # fmt: skip
PATHS = (
    "/v1/transactions", "/v1/transactions/", "//v1/transactions", "/v1/participants", "/metrics", "/livez",
    "/livez/",
    "/readyz", "/leader", "/openapi.json", "/", "", "*", "/v2/transactions", "/v1/transactions/x/x/x",
    "/%2e%2e/", "/\\",
    "http://evil.example/v1/transactions", "/v1/transactions?state=%ff", "/" + "a" * 9000, "/%", "/%zz",
    "/\x7f", "/é",
)  # fmt: skip
UNTAKEN = 30
"""Connections of which no answer is taken."""
HELD_S = 12.0
"""For how long one client holds what it could take: longer than the other one may need."""
AGAIN_S = 0.02
BYTE_AGAIN_S = 0.5
CROWD = 300
"""Connections at once, each slow in a way of its own: more than the requests that are worked on at once."""


def methods(world: World) -> None:
    """Every method of every path, with the attacker's token and without."""
    for path in PATHS:
        requests = []
        for method in METHODS:
            body = b'{"timeout_ms": 1}' if method in {"PUT", "PATCH", "OPTIONS"} else b""
            requests += [Request(method, path, body, who) for who in (None, token(ATTACKER))]
        for answer in world.ask(*requests):
            if answer.status == 201:  # by right
                ended(world, answer.json()["id"])
    for bait in world.baits:
        tx = f"/v1/transactions/{bait.work.id}"
        for method in METHODS[:10]:
            for path in (
                tx,
                f"{tx}/commit",
                f"{tx}/rollback",
                f"{tx}/branches",
                f"{tx}/branches/1",
                f"{tx}/",
            ):
                override = (("X-HTTP-Method-Override", "POST"), ("Connection", "close"))
                world.ask(Request(method, path, b"", token(ATTACKER), headers=override))


def bodies(world: World) -> None:
    """Too large, announced or not; of other types and encodings; with what is no body. None begins a
    transaction."""
    who = token(ATTACKER)
    large = b'{"timeout_ms": 900000' + b" " * BODY_BYTES_MAX + b"}"
    huge = b"{" + b'"timeout_ms": 1,' * (BODY_BYTES_MAX // 10) + b'"timeout_ms": 900000}'
    requests = [
        Request("POST", "/v1/transactions", large, who),
        Request("POST", "/v1/transactions", huge, who),
        Request("POST", "/v1/transactions", b"\x00" * (BODY_BYTES_MAX + 1), who),
        Request("GET", "/v1/participants", large, who),
    ]
    kinds = "text/plain", "text/json", "application/jsonx", "", "application/json, text/html", "*/*", "\t"
    good = b'{"timeout_ms": 900000}'
    requests += [
        Request("POST", "/v1/transactions", good, who, headers=(("Content-Type", kind),)) for kind in kinds
    ]
    for coding in ("gzip", "deflate", "br", "identity, gzip"):
        headers = (("Content-Encoding", coding), ("Content-Type", "application/json"))
        requests.append(Request("POST", "/v1/transactions", b"\x1f\x8b\x08\x00", who, headers=headers))
    world.ask(*requests)
    for piece in (large, huge, b" " * (BODY_BYTES_MAX * 3)):
        _chunked(world, who, piece)
    for size in (99_999_999_999_999_999_999, BODY_BYTES_MAX + 1, 2**63, 2**64):
        head = f"POST /v1/transactions HTTP/1.1\r\nHost: 127.0.0.1:{world.port}\r\nContent-Length: {size}\r\n"
        more = f"Authorization: Bearer {who}\r\nContent-Type: application/json\r\n\r\n"
        _raw(world, f"{head}{more}".encode() + b"{" * 100)


def _chunked(world: World, who: str, body: bytes) -> None:
    """A body whose length is told nowhere."""
    head = (
        f"POST /v1/transactions HTTP/1.1\r\nHost: 127.0.0.1:{world.port}\r\nAuthorization: Bearer {who}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunks = [body[at : at + 30_000] for at in range(0, len(body), 30_000)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    _raw(world, head.encode() + framed + b"0\r\n\r\n")


def _raw(world: World, *parts: bytes) -> None:
    """As bytes in a connection of their own, and whatever comes back."""
    line = Line(world.port)
    try:
        for part in parts:
            line.send(part)
        world.take(line.rest(), 1)
    finally:
        line.close()


def documents(world: World) -> None:
    """What is JSON and no request, or no JSON: every body of every operation, at its bounds, and changed at
    random places. The same seed gives the same bodies."""
    who = token(ATTACKER)
    chance = random.Random(SEED)  # noqa: S311 - a seed replays it
    id_ = begun(world)
    tx = f"/v1/transactions/{id_}"
    paths: dict[str, dict[str, object]] = {
        "/v1/transactions": {"timeout_ms": 1},
        f"{tx}/branches": {"participant": "scratch"},
        f"{tx}/statements": {"participant": "scratch", "sql": "select $1", "params": [1]},
    }
    requests = []
    for path, good in paths.items():
        found = [changed(json.dumps(good).encode(), chance) for _ in range(FUZZED // len(paths))]
        requests += [Request("POST", path, body, who) for body in (*odd_documents(good), *found)]
    requests += [
        Request("POST", f"{tx}/{verb}", odd, who) for verb in ("x", "commit") for odd in odd_documents({})
    ]
    for at in range(0, len(requests), 200):
        answers = world.ask(*requests[at : at + 200])
        for answer in answers:
            told = answer.json()
            if answer.status == 201 and "expires_at" in told:
                ended(world, told["id"])
    ended(world, id_)


def odd_documents(good: dict[str, object]) -> Iterator[bytes]:
    """Beside this one."""
    yield from (
        b"", b" ", b"null", b"[]", b"{", b"}",
        b"{]", b'"', b'"x', b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"\xff", b"{}{}",
        b"{} x", b"NaN", b"-Infinity",
        b"[" * 5000, b"[" * 90_000, b'{"a":' * 10_000, b"1" * 90_000, b"-", b"1e400",
        b"\x00", b"{\x00}", b"'{}'", b"{'a': 1}", b"{a: 1}", b"{,}", b'{"a":1,}', b"/* */{}", b"<xml/>",
        b"\xed\xa0\x80",
    )  # fmt: skip
    values: tuple[object, ...] = (
        None, True, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**300, 0.5, -0.0, 1e308, "", "\0", "\ud800",
        "\udfff\ud800",
        "\u202e", "x" * 90_000, [], [[]], {}, {"": {}}, "2pc", "4pc", "scratch\0", "' or 1=1; --",
        ["scratch"],
    )  # fmt: skip
    for name in (*good, "unknown", "", "__class__", "type"):
        for value in values:
            yield json.dumps({**good, name: value}).encode()
        yield json.dumps({**good, name: 1})[:-1].encode() + b',"' + name.encode() + b'":1}'
        yield b'{"' + name.encode() + b'":' + b"[" * 2000 + b"]" * 2000 + b"}"
        yield b'{"' + name.encode() + b'":1e999999999}'
        yield b'{"' + name.encode() + b'":' + b"9" * 10_000 + b"}"
        yield b'{"' + name.encode() + b'":"\xff\xfe"}'
        yield b'{"' + name.encode() + b'":"\\ud800"}'


def changed(body: bytes, chance: random.Random) -> bytes:
    """At some places."""
    found = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(found) + 1)
        match chance.randrange(4):
            case 0:
                found[place:place] = bytes([chance.randrange(256)])
            case 1:
                del found[place : place + chance.randint(1, 5)]
            case 2:
                found[place : place + 1] = chance.choice(
                    (b'"', b"{", b"}", b"[", b"\\", b"\\u0000", b",", b":", b"\x00")
                )
            case _:
                found[place:place] = found[: chance.randrange(len(found) + 1)]
    return bytes(found)


def framing(world: World) -> None:
    """Requests whose end is read in two ways. A request that hides in the body of another one would be taken
    for one of whoever sends next; here the hidden one would begin, commit and roll back."""
    who, port = token(ATTACKER), world.port
    bait = world.baits[0].work.id
    host = f"Host: 127.0.0.1:{port}\r\n"
    auth = f"Authorization: Bearer {who}\r\n"
    hidden = (
        f"POST /v1/transactions/{bait}/rollback HTTP/1.1\r\n{host}Authorization: Bearer {token(VICTIM)}x\r\n"
        "Content-Length: 0\r\n\r\n"
    )
    size = f"Content-Length: {len(hidden)}\r\n"
    start = f"POST /livez HTTP/1.1\r\n{host}{auth}"
    chunked = "Transfer-Encoding: chunked\r\n"
    chunk = f"{len(hidden):x}\r\n{hidden}\r\n0\r\n\r\n"
    framed = [
        f"{start}{size}Content-Length: 0\r\n\r\n{hidden}",
        f"{start}Content-Length: 0\r\n{size}\r\n{hidden}",
        f"{start}Content-Length: 0, {len(hidden)}\r\n\r\n{hidden}",
        f"{start}Content-Length: +{len(hidden)}\r\n\r\n{hidden}",
        f"{start}Content-Length: {len(hidden)} 0\r\n\r\n{hidden}",
        f"{start}Content-Length: 0x10\r\n\r\n{hidden}",
        f"{start}Content-Length : 0\r\n\r\n{hidden}",
        f"{start}Content-Length:\r\n\r\n{hidden}",
        f"{start}{size}{chunked}\r\n0\r\n\r\n{hidden}",
        f"{start}{chunked}{size}\r\n{chunk}",
        f"{start}Transfer-Encoding: xchunked\r\n\r\n{chunk}",
        f"{start}Transfer-Encoding: chunked, identity\r\n\r\n{chunk}",
        f"{start}Transfer-Encoding: identity\r\n\r\n{hidden}",
        f"{start}Transfer-Encoding : chunked\r\n\r\n{chunk}",
        f"{start}Transfer-Encoding:\tchunked\r\n\r\n{chunk}",
        f"{start}Transfer-Encoding: \x0bchunked\r\n\r\n{chunk}",
        f"{start}X: x\r\nTransfer-Encoding\r\n : chunked\r\n\r\n{chunk}",
        f"{start}{chunked}\r\nzz\r\n{hidden}",
        f"{start}{chunked}\r\n-1\r\n{hidden}",
        f"{start}{chunked}\r\nffffffffffffffff\r\n{hidden}",
        f"{start}{chunked}\r\n1ffffffffffffffff\r\n{hidden}",
        f"{start}{chunked}\r\n5;{'x' * 20_000}\r\nhello\r\n0\r\n\r\n",
        f"{start}{chunked}\r\n5\nhello\n0\n\n{hidden}",
        f"{start}{chunked}\r\n0\r\nX: {'x' * 40_000}\r\n\r\n",
        f"{start}{chunked}\r\n0\r\n{auth}Content-Length: 9\r\n\r\n{hidden}",
        f"{start}\r\n\n{hidden}",
        f"{start}\n\r\n{hidden}",
        f"POST /livez HTTP/1.1\n{host}\n\n{hidden}",
        f"POST /livez HTTP/1.0\r\n{host}{chunked}\r\n{chunk}",
        f"POST /livez HTTP/2.0\r\n{host}\r\n{hidden}",
        f"POST  /livez  HTTP/1.1\r\n{host}\r\n",
        f"GET /livez\r\n\r\n{hidden}",
        f"GET /livez HTTP/1.1\r\n{host}X: a\r\n b\r\n\r\n{hidden}",
        f"GET /livez HTTP/1.1\r\n{host}X\x00: a\r\n\r\n{hidden}",
        f"GET /livez HTTP/1.1\r\n{host}X: a\x00b\r\n\r\n{hidden}",
        f"GET /livez HTTP/1.1\r\n{host}: a\r\n\r\n{hidden}",
        f"GET /livez HTTP/1.1\r\n{host}Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n{hidden}",
        f"GET /livez HTTP/1.1\r\n{host}Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n{hidden}",
        f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{host}\r\n{hidden}",
        f"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{hidden}",
        f"POST /livez HTTP/1.1\r\n{host}{auth}Expect: 100-continue\r\nContent-Length: 99999\r\n\r\n",
        f"POST /livez HTTP/1.1\r\n{host}{auth}Expect: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "\x00" * 1000,
        "\r\n" * 5000,
        "A" * 200_000,
        f"GET /livez HTTP/1.1\r\n{host}" + "X: x\r\n" * 20_000 + "\r\n",
        f"GET /livez HTTP/1.1\r\n{host}" + f"X{'x' * 70_000}: x\r\n\r\n",
    ]
    for sent in framed:
        for step in (len(sent), max(len(sent) // 7, 1)):
            data = sent.encode("latin-1")
            _raw(world, *(data[at : at + step] for at in range(0, len(data), step)))


def pipelines(world: World) -> None:
    """Many requests in one connection, some of which end it, and answers that are never read."""
    requests = [Request("GET", "/livez"), Request("GET", "/nowhere"), post("/v1/transactions", [], token="x")]
    for _ in range(3):
        world.ask(*requests * 150)
    host = f"127.0.0.1:{world.port}"
    for each in requests:
        line = Line(world.port)
        line.send(each.bytes(host) * 2000)
        line.close()
        world.take((), 1)  # most of them are never read by the server


def slow(world: World) -> None:
    """More connections than requests may be worked on, each slower than it may be, and none of them read:
    heads that end never, bodies that end never, answers that nobody takes, and halves that are closed. All
    at once, beside a client that works."""
    who, host = token(ATTACKER), f"Host: 127.0.0.1:{world.port}\r\n"
    auth = f"Authorization: Bearer {who}\r\n"
    kind = "Content-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    body = f"POST /v1/transactions HTTP/1.1\r\n{host}{auth}{kind}"
    id_ = begun(world)
    rows = {"participant": "scratch", "sql": "select repeat('x', 1000) from generate_series(1, 900)"}
    unread = post(f"/v1/transactions/{id_}/statements", rows, token=who).bytes(host[6:-2]) * 10
    kinds = (
        f"GET /livez HTTP/1.1\r\n{host}X: ".encode(),
        b"",
        body.encode(),
        f"{body}{{".encode(),
        body.replace(auth, "").encode(),
        f"POST /v1/transactions HTTP/1.1\r\n{host}{auth}Transfer-Encoding: chunked\r\n\r\n5\r\n".encode(),
    )
    lines = [Line(world.port) for _ in range(CROWD)]
    untaken = [Line(world.port, takes_bytes=4096) for _ in range(UNTAKEN)]
    try:
        for number, line in enumerate(lines):
            line.door.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                line.send(kinds[number % len(kinds)])
        for line in untaken:
            line.send(unread)
        end = time.monotonic() + BODY_TIMEOUT_S * 5
        while time.monotonic() < end:
            for line in lines:
                line.send(b"x")  # a byte at a time, for ever
            time.sleep(BYTE_AGAIN_S)  # slow on purpose: this is the attack
        world.take((), CROWD + UNTAKEN)
        left = world.sockets() - world.sockets_before
        if left > UNTAKEN // 2:
            world.stalled.append(f"slow: {left} connections are kept that do nothing")
    finally:
        for line in (*lines, *untaken):
            line.close()
    ended(world, id_)


def waits(world: World) -> None:
    """One client takes every place: of transactions, of requests that wait, of keys and connections. The
    client that works beside it gets its own."""
    who = token(ATTACKER)
    unknown = world.unknown_id()
    waiting = Request("GET", f"/v1/transactions/{unknown}", token=who, headers=(("Prefer", "wait=60"),))
    lines = [Line(world.port) for _ in range(CROWD)]
    held: list[str] = []
    try:
        for line in lines:
            line.send(waiting.bytes(f"127.0.0.1:{world.port}"))
        answers = world.ask(*[post("/v1/transactions", {"timeout_ms": 60_000}, token=who)] * TRANSACTIONS_MAX)
        held = [answer.json()["id"] for answer in answers if answer.status == 201]
        keyed = [
            post("/v1/transactions", {}, token=who, Idempotency_Key=f"crowd-{number}")
            for number in range(200)
        ]
        held += [answer.json()["id"] for answer in world.ask(*keyed) if answer.status == 201]
        world.take((), CROWD)
        end = time.monotonic() + HELD_S
        while time.monotonic() < end:  # what the client beside has given back is taken, too
            more = world.ask(*[post("/v1/transactions", {"timeout_ms": 60_000}, token=who)] * 4)
            held += [answer.json()["id"] for answer in more if answer.status == 201]
            time.sleep(AGAIN_S)  # the pace of the attack
    finally:
        for line in lines:
            line.close()
        world.ask(*(post(f"/v1/transactions/{id_}/rollback", token=who) for id_ in held))


def log_of(world: World) -> None:
    """Nothing of a request makes a line of its own in the log, and no secret is in it."""
    forged = '{"level":"info","message":"x"}'
    for value in (
        f"a\\n{forged}",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\u2028",
        "\x1b[2J",
        "é" * 50,
    ):
        headers = (("traceparent", value), ("User-Agent", value), ("X-Request-Id", value))
        world.ask(
            *(
                Request(*one[:2], token=token(ATTACKER), headers=headers)
                for one in changing(f"%0a{forged}".replace(" ", ""))
            )
        )
    for line in world.stage.log.splitlines():
        if not isinstance(json.loads(line), dict):
            world.changed.append(f"log: {line!r}")
    for secret in (SECRET, token(VICTIM), token(ATTACKER)):
        if secret in world.stage.log:
            world.disclosed.append(f"log: {secret!r}")
