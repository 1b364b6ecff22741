"""``undoubt tx``: what the ledger recorded, in keys that scripts rely on."""

from __future__ import annotations

import msgspec

from tests.undoubt.cli.stage import Stage
from undoubt.coordinator.ledger.contract import Heuristic
from undoubt.participants.contract import Decision, Settled


def test_list_is_newest_first_and_pages(stage: Stage) -> None:
    gids = [stage.prepare(seq, Decision.COMMIT)[0] for seq in (1, 2, 3)]
    shown = stage.json("tx", "list", "--limit", "2")
    assert [one["txid"] for one in shown] == [str(gids[2].txid), str(gids[1].txid)]
    rest = stage.json("tx", "list", "--before", shown[-1]["txid"])
    assert [one["txid"] for one in rest] == [str(gids[0].txid)]
    assert str(gids[2].txid) in stage.run("tx", "list").out


def test_an_empty_list_is_an_empty_array(stage: Stage) -> None:
    assert stage.json("tx", "list") == []
    assert stage.run("tx", "list").status == 0


def test_show_takes_a_transaction_or_any_of_its_gids(stage: Stage) -> None:
    gid, other = stage.prepare(1, Decision.COMMIT)
    shown = stage.json("tx", "show", str(gid.txid))
    assert shown == stage.json("tx", "show", str(other)) | {"age_s": shown["age_s"]}
    assert set(shown) == {
        "txid", "decision", "verdict", "finished", "protocol", "coordinator", "decided_at", "age_s",
        "branches", "heuristics", "key", "agent",
    }  # fmt: skip
    assert (shown["decision"], shown["protocol"], shown["finished"]) == ("commit", "2pc", False)
    assert [one["gid"] for one in shown["branches"]] == [str(gid), str(other)]
    assert shown["branches"][0]["evidence"]["system"] == str(stage.orders.system)
    page = stage.run("tx", "show", str(gid.txid)).out
    assert "committed, not yet applied everywhere" in page
    assert str(other) in page


def test_show_tells_the_key(stage: Stage) -> None:
    """An operator asks for a transaction because a client has repeated its key."""
    gid, _ = stage.prepare(1, Decision.COMMIT)
    assert stage.json("tx", "show", str(gid.txid))["key"] is None
    info = stage.ledger.decisions[gid.txid]
    stage.ledger.decisions[gid.txid] = msgspec.structs.replace(info, key="order 42")
    assert stage.json("tx", "show", str(gid.txid))["key"] == "order 42"
    assert "key          order 42" in stage.run("tx", "show", str(gid.txid)).out


def test_show_tells_of_heuristics(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Decision.COMMIT)
    stage.ledger.known[gid] = Heuristic(
        gid, Settled.HEURISTIC_ROLLBACK, Decision.COMMIT, 1_767_225_600.0, "by hand"
    )
    page = stage.run("tx", "show", str(gid.txid)).out
    assert "heuristic rollback" in page
    assert "2026-01-01T00:00:00.000Z" in page
    assert "by hand" in page


def test_show_of_an_unknown_transaction_exits_3_and_does_not_say_aborted(stage: Stage) -> None:
    """No record is no abort: it may have committed in one phase."""
    ran = stage.run("tx", "show", str(stage.gid(9).txid))
    assert (ran.status, ran.out) == (3, "")
    assert "abort" not in ran.err


def test_show_makes_up_no_protocol(stage: Stage) -> None:
    """Only the decision is left of it."""
    gid, _ = stage.prepare(1, Decision.COMMIT)
    known = stage.ledger.decisions[gid.txid]
    stage.ledger.decisions[gid.txid] = msgspec.structs.replace(known, letter="", branches=())
    assert stage.json("tx", "show", str(gid.txid))["protocol"] is None
    assert stage.json("tx", "list")[0]["protocol"] is None
    assert "protocol     -" in stage.run("tx", "show", str(gid.txid)).out
