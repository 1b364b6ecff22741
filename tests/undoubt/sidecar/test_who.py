"""Who may: tokens, the unix socket, Host and Origin, roles and participants."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.undoubt.sidecar.stage import Stage, staged, token
from undoubt.config import ConfigurationError, Settings, load
from undoubt.coordinator.supervision import Supervised, restarts
from undoubt.participants.errors import UsageError
from undoubt.serve.sidecar.connection import names_in
from undoubt.serve.sidecar.server import check, start_reloading
from undoubt.serve.sidecar.settings import SidecarSettings, TokenSettings
from undoubt.serve.sidecar.tokens import Doorkeeper, hash_of

GUARDED = [
    "/v1/transactions",
    "/v1/locks",
    "/v1/participants",
    "/metrics",
    "/leader",
    "/openapi.json",
    "/readyz?verbose",
]


@pytest.mark.parametrize("path", GUARDED)
def test_tcp_needs_a_token(stage: Stage, path: str) -> None:
    """TCP does not say who connects: every user of the machine can."""
    answer = stage.tcp(None).get(path)
    assert answer.status_code in {401, 403}
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["name"] in {"TokenNeeded", "NotAllowed"}


@pytest.mark.parametrize("name", [None, "unknown"])
def test_who_is_not_known_needs_a_token_and_no_role(stage: Stage, name: str | None) -> None:
    """Broken if somebody whose token is missing or wrong looks for missing roles."""
    answer = stage.tcp(name).get("/readyz?verbose")
    expected = "TokenNeeded" if name is None else "TokenUnknown"
    assert (answer.status_code, answer.json()["name"]) == (401, expected)


def answers(stage: Stage, status: int) -> bool:
    """Whether the client ``shop`` gets this HTTP status for its token."""
    return stage.tcp("shop").get("/v1/participants").status_code == status


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_needs_none(stage: Stage, path: str) -> None:
    assert stage.tcp(None).get(path).status_code == 200


@pytest.mark.parametrize(
    "shown", ["Bearer wrong", "Bearer", "Basic dXNlcjpwYXNz", "", f"Bearer {token('shop')}x", "Bearer é"]
)
def test_a_wrong_token_is_refused(stage: Stage, shown: str) -> None:
    answer = stage.tcp(None).http.get(
        "/v1/participants", headers=[(b"authorization", shown.encode("latin-1"))]
    )
    assert answer.status_code == 401
    assert "www-authenticate" in answer.headers


def test_a_wrong_token_counts_on_the_unix_socket_too(stage: Stage) -> None:
    """A proxy in front of it that passes tokens on must not make everybody the owner."""
    assert stage.unix().get("/v1/participants", Authorization="Bearer wrong").status_code == 401


def test_the_socket_is_the_owners(stage: Stage) -> None:
    assert stage.socket.parent.stat().st_mode & 0o777 == 0o700
    assert stage.socket.stat().st_mode & 0o777 == 0o600
    assert stage.unix().get("/v1/participants").status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "",
        "[::",
        "evil.example@127.0.0.1",
        "127.0.0.1/evil.example",
        "127.0.0.1?evil.example",
        "127.0.0.1:x",
    ],
)
def test_another_host_is_refused(stage: Stage, host: str) -> None:
    """DNS rebinding: a page whose name resolves to this address."""
    answer = stage.tcp().get("/v1/participants", Host=host)
    assert answer.status_code in {400, 421}


def test_a_page_of_another_server_is_refused(stage: Stage) -> None:
    own = f"127.0.0.1:{stage.port}"
    client = stage.tcp()
    assert client.get("/v1/participants", Origin="http://evil.example").status_code == 403
    for origin in ("null", "", "http://[", own, f"http://{own}/", f"http://x@{own}"):
        assert client.get("/v1/participants", Origin=origin).status_code == 403
    assert client.get("/v1/participants", Origin=f"http://{own}").status_code == 200
    answer = client.http.options(
        "/v1/transactions", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert answer.status_code == 403
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    "doubled", [("Authorization", f"Bearer {token('shop')}"), ("Content-Type", "text/plain")]
)
def test_a_header_that_counts_once_is_there_once(stage: Stage, doubled: tuple[str, str]) -> None:
    """Broken if a server on the request's way, and this one, can each believe another one of two."""
    own = f"127.0.0.1:{stage.port}"
    headers = [
        ("Host", own),
        ("Authorization", f"Bearer {token('shop')}"),
        ("Content-Type", "application/json"),
    ]
    answer = stage.tcp(None).http.post("/v1/transactions", content=b"{}", headers=[*headers, doubled])
    assert (answer.status_code, answer.json()["name"]) == (400, "DoubledHeader")


def test_a_transaction_is_its_clients(stage: Stage) -> None:
    """Another client does not even learn that it exists."""
    work = stage.tcp("shop").begin()
    work.run("select 1")
    other = stage.tcp("other")
    for answer in (
        other.get(work.path),
        other.post(f"{work.path}/statements", {"participant": "orders", "sql": "select 1"}),
        other.post(f"{work.path}/branches", {"participant": "orders"}),
        other.delete(f"{work.path}/branches/1"),
        other.post(f"{work.path}/commit"),
        other.post(f"{work.path}/rollback"),
    ):
        assert (answer.status_code, answer.json()["name"]) == (404, "NoSuchTransaction")
    assert work.id not in other.get("/v1/transactions").text
    assert work.id in stage.tcp("shop").get("/v1/transactions").text
    assert work.show()["state"] == "active"
    assert work.rollback().status_code == 200


def test_roles(stage: Stage) -> None:
    """An observer sees all and changes nothing; an operator may roll back."""
    work = stage.tcp("shop").begin()
    work.run("select 1")
    watcher, operator = stage.tcp("watcher"), stage.tcp("operator")
    assert watcher.get(work.path).json()["state"] == "active"
    assert work.id in {each["id"] for each in watcher.get("/v1/transactions").json()["transactions"]}
    assert watcher.get("/metrics").status_code == 200
    assert stage.tcp("shop").get("/metrics").json()["name"] == "NotAllowed"
    for answer in (
        watcher.post("/v1/transactions"),
        watcher.post(f"{work.path}/rollback"),
        watcher.post(f"{work.path}/commit"),
        operator.post(f"{work.path}/commit"),
        operator.post("/v1/transactions"),
    ):
        assert (answer.status_code, answer.json()["name"]) == (403, "NotAllowed")
    assert operator.post(f"{work.path}/rollback").status_code == 200
    assert work.show()["state"] == "aborted"
    # Not "by its client", which has not done it.
    assert work.commit().json()["reason"].startswith("it was rolled back by client 'operator'")


def test_participants_of_a_token(stage: Stage) -> None:
    other = stage.tcp("other")
    names = {each["name"] for each in other.get("/v1/participants").json()["participants"]}
    assert names == {"orders"}
    work = other.begin()
    refused = other.post(f"{work.path}/branches", {"participant": "payments"})
    assert (refused.status_code, refused.json()["name"]) == (403, "NotAllowed")
    work.rollback()


def test_no_sql_unless_the_participant_allows_it(stage: Stage) -> None:
    work = stage.tcp().begin()
    refused = work.sql("select 1", participant="payments")
    assert (refused.status_code, refused.json()["name"]) == (403, "NoSqlHere")
    unknown = stage.tcp().post(f"{work.path}/branches", {"participant": "nowhere"})
    assert (unknown.status_code, unknown.json()["name"]) == (404, "UnknownParticipant")
    work.rollback()


def test_tokens_are_read_anew(shops: dict[str, str], tmp_path: Path) -> None:
    """SIGHUP: a token that leaked is taken away, and an expired one counts no more; a bad file changes
    nothing."""
    with staged(tmp_path, shops) as stage:
        assert stage.process is not None
        text = stage.config.read_text()
        leaked, moment = token("shop"), datetime.now(UTC) + timedelta(hours=1)
        stage.config.write_text(text.replace(hash_of(leaked), hash_of("another")))
        stage.process.send_signal(signal.SIGHUP)
        until(lambda: stage.tcp("shop").get("/v1/participants").status_code == 401)
        stage.config.write_text("not toml at all")
        stage.process.send_signal(signal.SIGHUP)
        until(lambda: "the tokens were not changed" in stage.log)
        assert stage.tcp("watcher").get("/metrics").status_code == 200
        for hours, status in ((0, 200), (2, 401)):
            expiry = (moment - timedelta(hours=hours)).isoformat()
            stage.config.write_text(text.replace('name = "shop"\n', f'name = "shop"\nexpires = {expiry}\n'))
            stage.process.send_signal(signal.SIGHUP)
            until(partial(answers, stage, status))


async def test_a_reading_of_the_tokens_that_fails_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a token that was taken away is valid until the process ends, since a bug has ended the task
    that reads them."""
    monkeypatch.setattr(Supervised.__init__, "__kwdefaults__", {"pause_s": 0.0})
    restarts.clear()
    reload, read = asyncio.Event(), asyncio.Event()

    def read_settings() -> Settings:
        if not restarts:
            raise RuntimeError("nobody foresaw this")
        loop.call_soon_threadsafe(read.set)
        return Settings()

    loop = asyncio.get_running_loop()
    task = start_reloading(read_settings, reload, Doorkeeper(SidecarSettings()))
    reload.set()
    async with asyncio.timeout(30):
        await read.wait()
    task.cancel()
    await asyncio.wait([task])
    assert restarts == {"sidecar tokens": 1}


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_access_log_tells_no_secret(stage: Stage) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    work = stage.tcp().begin()
    work.client.post(
        f"{work.path}/statements",
        {"participant": "orders", "sql": "select 'a secret of sql'"},
        traceparent=trace,
    )
    work.rollback()
    until(lambda: work.id in stage.log)
    lines = [json.loads(line) for line in stage.log.splitlines() if '"undoubt.sidecar.access"' in line]
    [line] = [each for each in lines if each.get("trace")]
    assert line["trace"] == "0af7651916cd43dd8448eb211c80319c"
    assert (line["client"], line["transaction"], line["status"]) == ("shop", work.id, 200)
    assert line["operation"] == "/v1/transactions/{id}/statements"
    for secret in (token("shop"), "a secret of sql"):
        assert secret not in stage.log


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"listen": "127.0.0.1:1"}, "without sidecar.tokens"),
        ({"listen": "0.0.0.0:1", "tokens": ("shop",)}, "open to other machines"),
        ({"listen": "10.0.0.1:1", "tokens": ("shop",)}, "open to other machines"),
        ({"socket": ""}, "listens nowhere"),
    ],
)
def test_it_does_not_start_for_everybody(settings: dict[str, object], why: str) -> None:
    """Neither TCP without tokens nor other machines without TLS."""
    if "tokens" in settings:
        settings["tokens"] = (TokenSettings(name="shop", sha256="0" * 64, participants=("*",)),)
    with pytest.raises(UsageError, match=why):
        check(SidecarSettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"name": "shop"}, "certificate is needed"),
        ({"name": "a b", "sha256": "0" * 64}, "must be letters"),
        ({"name": "shop", "sha256": "undoubt_secret", "participants": ["*"]}, "64 hexadecimal digits"),
        ({"name": "shop", "sha256": "0" * 64}, "must name some"),
        ({"name": "shop", "sha256": "0" * 64, "roles": ["root"], "participants": ["*"]}, "not one of"),
        ({"name": "shop", "sha256": "0" * 64, "token": "x"}, "unknown field"),
        ({"name": "shop", "sha256": "0" * 64, "participants": ["a b"]}, "not a participant name"),
    ],
)
def test_wrong_tokens_are_told(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        load({"sidecar": {"tokens": [wrong]}})


def test_a_token_of_two_clients_is_told() -> None:
    entry = {"name": "shop", "sha256": "0" * 64, "participants": ["*"]}
    with pytest.raises(ConfigurationError, match="two of the name 'shop'"):
        load({"sidecar": {"tokens": [entry, entry]}})


def test_names_in_a_certificate() -> None:
    shown = {
        "subject": ((("countryName", "DE"),), (("commonName", "shop"),)),
        "subjectAltName": (("DNS", "shop.internal"), ("IP Address", "10.0.0.1")),
    }
    assert names_in(shown) == ("shop", "shop.internal")
    assert names_in({}) == ()


def test_slow_heads_are_cut(stage: Stage) -> None:
    """A connection that never says anything would be kept for ever."""
    with socket.create_connection(("127.0.0.1", stage.port)) as silent:
        silent.settimeout(30)
        silent.sendall(b"GET /livez HTTP/1.1\r\nHost: ")
        with pytest.raises((ConnectionResetError, httpx.ReadError)):
            if silent.recv(100) == b"":
                raise ConnectionResetError
