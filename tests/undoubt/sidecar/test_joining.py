"""Two sidecars, each of a service of its own, on one ledger: what the second service joins through its own
sidecar, and what it is refused. Processes are real; either is killed."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.undoubt.cli.harness import undoubt
from tests.undoubt.sidecar.pair import Pair
from tests.undoubt.sidecar.stage import (
    Stage,
    Work,
    eventually_none_prepared,
    prepare,
    token,
)
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.serve.sidecar.lookup import session_name

TAKE = "update account set balance = balance - 10 where id = {}"
GIVE = "update account set balance = balance + 10 where id = {}"


def test_a_service_joins_through_its_own_sidecar(pair: Pair) -> None:
    account = pair.account()
    work, joined = pair.begin()
    work.run(TAKE.format(account))
    branch = joined.announce("payments")
    prepare(pair.databases["payments"], branch, GIVE.format(account))
    shown = joined.show()
    assert shown["state"] == "active"
    assert [each["participant"] for each in shown["branches"]] == ["orders", "payments"]
    answer = work.commit()
    assert (answer.status_code, answer.json()["outcome"]) == (200, "committed"), answer.text
    assert pair.balances(account) == [90, 110]
    assert joined.show()["state"] == "committed"


def test_sql_through_the_second_sidecar_runs_at_the_owner(pair: Pair) -> None:
    """In the one branch that the owner has in that database."""
    account = pair.account()
    work, joined = pair.begin()
    work.run(TAKE.format(account))
    assert joined.run(f"select balance from account where id = {account}")["rows"] == [[90]]
    joined.run(GIVE.format(account))
    assert work.commit().status_code == 200
    assert pair.balances(account) == [100, 100]


def test_a_branch_that_the_second_service_does_not_prepare_aborts(pair: Pair) -> None:
    account = pair.account()
    work, joined = pair.begin()
    work.run(TAKE.format(account))
    joined.announce("payments")
    answer = work.commit()
    assert (answer.status_code, answer.json()["participant"]) == (409, "payments")
    assert pair.balances(account) == [100, 100]


@pytest.mark.parametrize("verb", ["commit", "rollback"])
def test_a_capability_ends_nothing(pair: Pair, verb: str) -> None:
    """Broken if a service that was asked for a part can decide about the whole."""
    account = pair.account()
    work, joined = pair.begin()
    work.run(TAKE.format(account))
    for client in (joined.client, pair.a.tcp("peer", **{"Undoubt-Transaction": work.join})):
        answer = client.post(f"{work.path}/{verb}")
        assert (answer.status_code, answer.json()["name"]) == (403, "CapabilityCannot")
    assert work.show()["state"] == "active"
    assert work.rollback().status_code == 200


def test_a_capability_alone_is_worth_nothing(pair: Pair) -> None:
    """Broken if whoever reads a header in a log or a trace may join."""
    work, _ = pair.begin()
    for stage in (pair.a, pair.b):
        client = stage.tcp(None, **{"Undoubt-Transaction": work.join})
        answer = client.post(f"{work.path}/branches", {"participant": "payments"})
        assert answer.status_code == 401, answer.text
    work.rollback()


def test_both_the_client_and_the_capability_must_allow_a_participant(pair: Pair) -> None:
    work, _ = pair.begin()
    answer = pair.joined(work, "other").sql("select 1", participant="payments")
    assert (answer.status_code, answer.json()["name"]) == (403, "NotAllowed")
    narrow = pair.a.tcp("other").begin()  # whose client may use orders alone
    refused = narrow.client.post(f"{narrow.path}/branches", {"participant": "payments"})
    assert refused.status_code == 403
    for stage, name in ((pair.b, "shop"), (pair.a, "peer")):
        client = stage.tcp(name, **{"Undoubt-Transaction": narrow.join})
        answer = client.post(f"{narrow.path}/branches", {"participant": "payments"})
        assert (answer.status_code, answer.json()["name"]) == (403, "NotAllowed"), name
    watcher = pair.joined(work, "watcher")
    assert watcher.client.post(f"{work.path}/branches", {"participant": "orders"}).status_code == 403
    narrow.rollback()
    work.rollback()


def changed(header: str, **fields: object) -> str:
    """Another payload under the same seal."""
    payload, _, seal = header.partition(".")
    decoded = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    raw = json.dumps(decoded | fields).encode()
    return f"{base64.urlsafe_b64encode(raw).decode().rstrip('=')}.{seal}"


@pytest.mark.parametrize(
    "fields", [{"participants": ["*", "x"]}, {"expires": 4102444800.0}, {}], ids=["wider", "longer", "seal"]
)
def test_a_changed_capability_is_refused_by_the_owner(pair: Pair, fields: dict[str, object]) -> None:
    work, _ = pair.begin()
    header = changed(work.join, **fields) if fields else work.join[:-6] + "AAAAAA"
    for stage, name in ((pair.b, "shop"), (pair.a, "peer")):
        client = stage.tcp(name, **{"Undoubt-Transaction": header})
        answer = client.post(f"{work.path}/branches", {"participant": "payments"})
        assert (answer.status_code, answer.json()["name"]) == (403, "CapabilityForged"), answer.text
    work.rollback()


def test_a_capability_is_for_one_transaction(pair: Pair) -> None:
    work, _ = pair.begin()
    other, _ = pair.begin()
    answer = pair.joined(Work(work.client, other.id), header=work.join).sql("select 1")
    assert (answer.status_code, answer.json()["name"]) == (403, "OtherTransaction")
    forged = changed(work.join, transaction=other.id)
    assert pair.joined(other, header=forged).sql("select 1").json()["name"] == "CapabilityForged"
    work.rollback()
    other.rollback()


def test_a_capability_of_another_ledger_is_refused(pair: Pair) -> None:
    work, _ = pair.begin()
    header = changed(work.join, ledger="aaaaaaaaaa")
    for stage in (pair.a, pair.b):
        client = stage.tcp("shop", **{"Undoubt-Transaction": header})
        answer = client.post(f"{work.path}/branches", {"participant": "payments"})
        assert (answer.status_code, answer.json()["name"]) == (403, "OtherLedger")
    work.rollback()


@pytest.mark.parametrize("header", ["", "x", "x.y", "e30.e30", "%.%", "A" * 9000, "." * 20])
def test_what_is_no_capability_is_refused(pair: Pair, header: str) -> None:
    work, _ = pair.begin()
    raw = pair.b.tcp("shop")
    raw.http.headers["Undoubt-Transaction"] = header
    answer = raw.post(f"{work.path}/branches", {"participant": "payments"})
    assert (answer.status_code, answer.json()["name"]) == (400, "BadCapability")
    work.rollback()


def test_a_header_beyond_ascii_is_passed_on_as_it_is(pair: Pair) -> None:
    """Broken if such a header is an unexpected error."""
    work, joined = pair.begin()
    shown = {b"content-type": "application/json; charset=\u00e9".encode("latin-1"), b"traceparent": b"\xe9"}
    body = json.dumps({"participant": "payments"}).encode()
    answer = joined.client.http.post(f"{work.path}/branches", content=body, headers=shown)
    assert answer.status_code == 201, answer.text
    work.rollback()


class Listener:
    """Counts who connects."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.connections = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@pytest.fixture
def listener() -> Iterator[Listener]:
    made_ = Listener()
    yield made_
    made_.close()


def test_nothing_but_the_ledgers_address_is_called(pair: Pair, listener: Listener) -> None:
    """Broken if a header makes a sidecar send its own token, or any request, where the header says."""
    work, _ = pair.begin()
    joined = pair.joined(work, header=changed(work.join, owner=listener.url))
    for answer in (joined.sql("select 1"), joined.client.get(work.path)):
        assert (answer.status_code, answer.json()["name"]) == (403, "WrongOwner")
    assert listener.connections == 0
    work.rollback()


def test_the_name_of_an_applications_session_is_no_address(
    pair: Pair, ledger: str, listener: Listener
) -> None:
    """Broken if any application that names its session like a sidecar's is called, with the token of the
    sidecar or of its client."""

    async def named() -> Any:
        opened = await open_ledger(LedgerSettings(url=ledger))
        try:
            return await opened.open_session(session_name(listener.url, "x"), 60.0)
        finally:
            await opened.close()

    session = asyncio.run(named())
    work, _ = pair.begin()
    header = changed(work.join, owner=listener.url, transaction=str(session.txid(1)))
    answer = pair.joined(Work(work.client, str(session.txid(1))), header=header).sql("select 1")
    assert answer.status_code == 404, answer.text
    plain = pair.b.tcp("shop").post(f"/v1/transactions/{session.txid(1)}/commit")
    assert plain.status_code == 404, plain.text
    assert listener.connections == 0
    work.rollback()


def test_a_capability_is_in_no_log(pair: Pair) -> None:
    work, joined = pair.begin()
    joined.announce("payments")
    pair.joined(work, header=work.join[:-6] + "AAAAAA").sql("select 1")
    work.rollback()
    payload, _, seal = work.join.partition(".")
    for log in (pair.a.log, pair.b.log):
        assert payload[:40] not in log
        assert seal not in log
        assert token("peer") not in log


def test_a_replayed_header_adds_nothing_after_the_end(pair: Pair) -> None:
    """Broken if a branch can join what is decided, and then waits prepared for nobody."""
    account = pair.account()
    work, joined = pair.begin()
    work.run(TAKE.format(account))
    assert work.commit().status_code == 200
    answer = joined.client.post(f"{work.path}/branches", {"participant": "payments"})
    assert (answer.status_code, answer.json()["name"]) == (409, "TransactionEnded")
    assert joined.sql(GIVE.format(account)).status_code == 409
    assert joined.show()["state"] == "committed"


def test_a_header_is_worth_nothing_after_its_deadline(pair: Pair) -> None:
    work, joined = pair.begin(timeout_ms=300)
    assert work.show(wait_s=5)["state"] == "aborted"
    answer = joined.client.post(f"{work.path}/branches", {"participant": "payments"})
    assert (answer.status_code, answer.json()["name"]) == (403, "CapabilityExpired")
    assert joined.show()["state"] == "aborted"


def test_a_branch_that_is_prepared_after_the_owners_deadline_is_rolled_back(pair: Pair) -> None:
    account = pair.account()
    work, joined = pair.begin(timeout_ms=300)
    branch = joined.announce("payments")
    assert work.show(wait_s=5)["state"] == "aborted"
    prepare(pair.databases["payments"], branch, GIVE.format(account))
    eventually_none_prepared(pair.databases["payments"])
    assert pair.balances(account) == [100, 100]


def test_a_joined_branch_can_be_taken_back_by_who_announced_it(pair: Pair) -> None:
    """And by nobody else who joins: it would withdraw what others rely on."""
    work, joined = pair.begin()
    own = work.announce("orders")
    branch = joined.announce("payments")
    answer = joined.client.delete(f"{work.path}/branches/{own['n']}")
    assert (answer.status_code, answer.json()["name"]) == (404, "NoSuchBranch")
    assert joined.client.delete(f"{work.path}/branches/{branch['n']}").status_code == 200
    work.rollback()


def test_a_repeated_key_is_one_request_at_the_owner(pair: Pair) -> None:
    """Also after the second sidecar, which saw the first one, has died."""
    work, joined = pair.begin()
    body, key = {"participant": "payments"}, {"Idempotency_Key": "again"}
    first = joined.client.post(f"{work.path}/branches", body, **key)
    pair.b.end(signal.SIGKILL)
    pair.b.start()
    again = joined.client.post(f"{work.path}/branches", body, **key)
    assert first.json() == again.json()
    assert len(work.show()["branches"]) == 1
    work.rollback()


def test_the_second_sidecar_dies_and_the_transaction_goes_on(pair: Pair) -> None:
    account = pair.account()
    work, joined = pair.begin()
    work.run(TAKE.format(account))
    branch = joined.announce("payments")
    pair.b.end(signal.SIGKILL)
    prepare(pair.databases["payments"], branch, GIVE.format(account))
    assert work.commit().status_code == 200
    assert pair.balances(account) == [90, 110]


def test_the_owner_dies_before_the_commit_and_it_is_aborted_everywhere(pair: Pair) -> None:
    """The second sidecar says so once the owner's session has expired, and not before."""
    account = pair.account()
    work, joined = pair.begin()
    work.run(TAKE.format(account))
    branch = joined.announce("payments")
    prepare(pair.databases["payments"], branch, GIVE.format(account))
    pair.a.end(signal.SIGKILL)
    assert joined.show()["state"] in {"unknown", "aborted"}
    answer = joined.client.post(f"{work.path}/branches", {"participant": "payments"})
    assert answer.status_code in {404, 503}, answer.text
    end = time.monotonic() + 60
    while (state := joined.show()["state"]) != "aborted":
        assert state == "unknown"
        assert time.monotonic() < end
        time.sleep(0.1)
    for dsn in pair.databases.values():
        eventually_none_prepared(dsn)
    assert pair.balances(account) == [100, 100]
    elsewhere = pair.b.tcp("shop").post(f"{work.path}/commit")
    assert (elsewhere.status_code, elsewhere.json()["outcome"]) == (409, "aborted")


def test_the_owner_dies_after_the_commit_and_the_second_sidecar_tells_it(pair: Pair) -> None:
    account = pair.account()
    work, joined = pair.begin()
    work.run(TAKE.format(account))
    prepare(pair.databases["payments"], joined.announce("payments"), GIVE.format(account))
    assert work.commit().status_code == 200
    pair.a.end(signal.SIGKILL)
    assert joined.show()["state"] == "committed"
    answer = pair.b.tcp("shop").post(f"{work.path}/commit")
    assert (answer.status_code, answer.json()["outcome"]) == (200, "committed")
    assert pair.balances(account) == [90, 110]


def test_a_new_process_at_the_owners_address_is_not_the_owner(pair: Pair) -> None:
    """Its seal is another, and it has no such transaction: nothing joins, and nothing is told as aborted
    while the old session may still be believed alive."""
    work, joined = pair.begin()
    pair.a.end(signal.SIGKILL)
    pair.a.start()
    answer = joined.client.post(f"{work.path}/branches", {"participant": "payments"})
    assert answer.status_code == 404, answer.text
    assert joined.show()["state"] in {"unknown", "aborted"}


def test_a_sidecar_without_an_address_gives_no_capability(stage: Stage) -> None:
    work = stage.unix().begin()
    assert work.join == ""
    work.rollback()


def test_configuration_that_would_send_tokens_in_the_clear_is_refused(tmp_path: Path) -> None:
    for url, listen in (("http://10.0.0.1:7480", "127.0.0.1:7480"), ("http://127.0.0.1:7480", "")):
        config = tmp_path / "undoubt.toml"
        config.write_text(
            f'[ledger]\nurl = "sqlite:///{tmp_path}/l.db"\n[sidecar]\nurl = "{url}"\nlisten = "{listen}"\n'
            '[[sidecar.tokens]]\nname = "x"\nsha256 = "' + "0" * 64 + '"\nparticipants = ["*"]\n'
        )
        refused = undoubt("sidecar", "--config", str(config))
        assert refused.status == 2, refused.err
        assert "sidecar.url" in refused.err
