"""``undoubt tx resolve``, ``audit``, and what people are told before they do what is dangerous."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from tests.undoubt.cli.stage import WRONG_TAG, Stage
from undoubt import wiring
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.contract import Heuristic, Verdict
from undoubt.participants.contract import Decision, Settled, XactStatus
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Gid
from undoubt.participants.registry import Registry


def by_hand(stage: Stage, gid: Gid, kind: Settled) -> None:
    order = Decision.COMMIT if kind is Settled.HEURISTIC_COMMIT else Decision.ABORT
    (stage.orders if gid.participant == "orders" else stage.payments).finish_by_hand(gid, order)
    stage.ledger.known[gid] = Heuristic(gid, kind, None, 1.0, "at three")


def test_resolve_ends_every_branch_as_recorded(stage: Stage) -> None:
    one, other = stage.prepare(1, Decision.COMMIT)
    asked = stage.run("tx", "resolve", str(one.txid))
    assert asked.status == 2, "nobody is there to answer"
    assert "Commit 2 branches" in asked.err
    assert one in stage.orders.prepared
    ran = stage.run("tx", "resolve", str(other), "--yes", "--note", "tired")
    assert ran.status == 0
    assert "COMMIT is recorded" in ran.out
    assert (stage.orders.xact_status(one), stage.payments.xact_status(other)) == (
        XactStatus.COMMITTED,
        XactStatus.COMMITTED,
    )
    assert "there is nothing to end" in stage.run("tx", "resolve", str(one.txid)).err
    assert stage.run("tx", "resolve", str(one.txid), "--rollback").status == 5
    (act, *_) = stage.json("audit")
    assert (act["verb"], act["subject"], act["result"]) == ("indoubt commit", str(other), "done")
    whole = stage.json("audit")[-1]
    assert (whole["verb"], whole["subject"], whole["note"]) == ("tx resolve --commit", str(one.txid), "tired")
    page = stage.run("audit").out
    assert "tired" in page
    assert whole["who"] in page


def test_resolve_refuses_the_direction_that_is_not_recorded(stage: Stage) -> None:
    """Of a transaction whose branches nothing tells of: only the decision is known."""
    txid = stage.gid(1).txid
    stage.ledger.record(txid, Decision.ABORT, ())
    assert stage.run("tx", "resolve", str(txid), "--rollback").status == 0
    refused = stage.run("tx", "resolve", str(txid), "--commit")
    assert refused.status == 5
    assert "ABORT is recorded" in refused.err


def test_resolve_asks_for_a_direction_where_none_is_proved(stage: Stage) -> None:
    one, other = stage.prepare(1, Verdict.FORGOTTEN)
    ran = stage.run("tx", "resolve", str(one.txid), "--yes")
    assert ran.status == 5
    assert "--heuristic" in ran.err
    assert stage.run("tx", "resolve", str(one.txid), "--rollback", "--yes").status == 5
    done = stage.run("tx", "resolve", str(one.txid), "--rollback", "--heuristic", "--yes", "-o", "json")
    assert done.status == 0
    assert [result["result"] for result in done.json["results"]] == ["done", "done"]
    assert (stage.orders.xact_status(one), stage.payments.xact_status(other)) == (
        XactStatus.ABORTED,
        XactStatus.ABORTED,
    )


def test_resolve_says_what_splits_before_it_asks(stage: Stage) -> None:
    one, _ = stage.prepare(1, Verdict.FORGOTTEN)
    by_hand(stage, one, Settled.HEURISTIC_COMMIT)
    rollback = ("tx", "resolve", str(one.txid), "--rollback", "--heuristic")
    refused = stage.run(*rollback, "--yes")
    assert refused.status == 5
    assert "--contradict" in refused.err
    asked = stage.run(*rollback, "--contradict")
    assert asked.status == 2
    assert "Branch 1 in orders has ended the other way: this splits the transaction." in asked.err
    ran = stage.run(*rollback, "--contradict", "--yes")
    assert ran.status == 5, "it is split, and says so"
    assert stage.run("tx", "resolve", "1-00112233445566ff.99", "--yes").status == 3


@pytest.mark.parametrize("words", [("indoubt", "explain"), ("tx", "resolve")])
def test_of_a_forgotten_transaction_a_silent_participant_may_have_a_branch(
    stage: Stage, words: tuple[str, str]
) -> None:
    """Nothing names that branch: the ledger has forgotten the transaction, and its list cannot be had."""
    one, other = stage.prepare(1, Verdict.FORGOTTEN)
    stage.orders.down = ParticipantUnavailable("orders", "connection refused")
    asked = stage.run(*words, str(one.txid))
    told = "participant 'orders' does not answer, and may have a branch of it"
    assert told in asked.out.lower()
    if words == ("indoubt", "explain"):
        assert asked.status == 4
        assert f"not everything is known: {told}" in asked.err
        shown = stage.run(*words, str(one.txid), "-o", "json").json
        assert (shown["hidden"], shown["not_known"]) == (["orders"], [[1, 1]])
        assert told in stage.run(*words, str(other)).out.lower().replace("\n", " ").replace("  ", " ")
        return
    assert asked.status == 5
    for direction in ("--commit", "--rollback"):
        refused = stage.run(*words, str(one.txid), direction, "--heuristic", "--yes")
        assert refused.status == 4
        assert told in refused.err
        assert "--contradict" in refused.err
    assert other in stage.payments.prepared
    single = stage.run("indoubt", "rollback", str(other))
    assert single.err.lower().index(told) < single.err.index("Roll back")
    ended = stage.run(*words, str(one.txid), "--rollback", "--heuristic", "--contradict", "--yes")
    assert ended.status == 4
    assert stage.payments.xact_status(other) is XactStatus.ABORTED


def test_of_a_forgotten_transaction_a_branch_that_nothing_tells_of_is_missed(stage: Stage) -> None:
    """It has committed, say, before the ledger was restored from a backup: its sibling's number shows that
    there was one."""
    one, other = stage.prepare(1, Verdict.FORGOTTEN)
    stage.orders.finish_by_hand(one, Decision.COMMIT)
    missed = "branch 1 is not known: look for its rows"
    explained = stage.run("indoubt", "explain", str(one.txid))
    assert explained.status == 4
    assert missed in explained.out.lower()
    assert missed in explained.err
    asked = stage.run("tx", "resolve", str(one.txid), "--rollback", "--heuristic")
    assert asked.status == 2, "nobody is there to answer"
    assert asked.err.lower().index(missed) < asked.err.index("Roll back 1 branch")
    single = stage.run("indoubt", "rollback", str(other))
    assert single.err.lower().index(missed) < single.err.index("Roll back")
    assert other in stage.payments.prepared
    ended = stage.run("tx", "resolve", str(one.txid), "--rollback", "--heuristic", "--yes")
    assert ended.status == 4
    assert missed in ended.err
    assert stage.payments.xact_status(other) is XactStatus.ABORTED


def test_a_branch_of_a_huge_number_makes_no_list_of_all_before_it(stage: Stage) -> None:
    """Numbers from names are no sizes."""
    gid = stage.gid(1, 2_000_000_000)
    asyncio.run(stage._prepare(stage.orders, gid))
    shown = stage.run("indoubt", "explain", str(gid.txid), "-o", "json").json
    assert shown["not_known"] == [[1, 1_999_999_999]]


@pytest.mark.parametrize("verdict", [Decision.COMMIT, Verdict.FORGOTTEN])
@pytest.mark.parametrize(
    "flags",
    [
        ("--commit", "--rollback"),
        ("--rollback", "--commit", "--heuristic", "--contradict"),
        ("--participant-gone", "payments", "--rollback"),
        ("--participant-gone", "payments", "--heuristic"),
        ("--participant-gone", "payments", "--contradict"),
    ],
)
def test_flags_that_contradict_each_other_do_nothing(
    stage: Stage, flags: tuple[str, ...], verdict: Verdict | Decision
) -> None:
    """The later one would win, against a recorded COMMIT too."""
    one, other = stage.prepare(1, verdict)
    ran = stage.run("tx", "resolve", str(one.txid), *flags, "--yes")
    assert ran.status == 2
    assert (one in stage.orders.prepared, other in stage.payments.prepared) == (True, True)
    assert stage.json("audit") == []


def test_resolve_of_a_participant_that_is_gone(stage: Stage) -> None:
    one, other = stage.prepare(1, Decision.COMMIT)
    gone = ("tx", "resolve", str(one.txid), "--participant-gone", "payments", "--yes")
    assert stage.run(*gone).status == 5
    stage.silence_payments()
    seen = stage.run("tx", "resolve", str(one.txid), "--yes")
    assert seen.status == 4
    assert stage.orders.xact_status(one) is XactStatus.COMMITTED
    ran = stage.run(*gone)
    assert (ran.status, ran.out.splitlines()[-1]) == (0, f"recorded as a hazard: {other}")
    assert stage.ledger.known[other].kind is Settled.HEURISTIC_HAZARD
    assert stage.ledger.decisions[one.txid].finished
    assert stage.run("tx", "resolve", str(one.txid), "--commit", "--participant-gone", "x").status == 2


def test_a_rollback_against_a_recorded_commit_is_told_before_it_is_asked(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Decision.COMMIT)
    plain = stage.run("indoubt", "rollback", str(gid))
    assert plain.status == 5, "refused without a question"
    assert "stdin is not a terminal" not in plain.err
    asked = stage.run("indoubt", "rollback", str(gid), "--heuristic")
    assert asked.status == 2
    assert asked.err.index("COMMIT IS RECORDED") < asked.err.index("Roll back")
    assert gid in stage.orders.prepared


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("words", [("indoubt", "rollback"), ("tx", "resolve", "--rollback")])
def test_a_rollback_beside_a_committed_sibling_is_refused_and_says_that_it_splits(
    stage: Stage, words: tuple[str, ...], up: bool
) -> None:
    """Exit status 0 and no word about the split, where the sibling's database proves it, or is down."""
    one, other = stage.prepare(1, Decision.COMMIT)
    stage.orders.finish_by_hand(one, Decision.COMMIT)
    if not up:
        stage.orders.down = ParticipantUnavailable("orders", "connection refused")
    name = str(other) if words[0] == "indoubt" else str(one.txid)
    refused = stage.run(*words, name, "--heuristic", "--yes")
    assert (refused.status, "--contradict" in refused.err) == (5, True)
    assert other in stage.payments.prepared
    done = stage.run(*words, name, "--heuristic", "--contradict", "--yes")
    assert "Branch 1 in orders has" in done.err
    assert "this splits the transaction" in done.err
    assert stage.payments.xact_status(other) is XactStatus.ABORTED


@pytest.mark.parametrize("verdict", [Verdict.FORGOTTEN, Verdict.ACTIVE])
def test_a_heuristic_is_shown_at_its_siblings(stage: Stage, verdict: Verdict) -> None:
    one, other = stage.prepare(1, verdict)
    by_hand(stage, one, Settled.HEURISTIC_COMMIT)
    (listed,) = stage.json("indoubt", "list")["branches"]
    assert listed["siblings"] == [{"gid": str(one), "kind": "heuristic_commit"}]
    assert "another branch of its transaction" in stage.run("indoubt", "list").out.lower()
    told = stage.json("indoubt", "explain", str(other))
    assert told["branch"]["siblings"] == listed["siblings"]
    assert str(one) in told["proof"][-1]
    assert str(one) in stage.run("tx", "show", str(one.txid)).out
    refused = stage.run("indoubt", "rollback", str(other), "--heuristic", "--yes")
    assert refused.status == 5
    assert other in stage.payments.prepared
    asked = stage.run("indoubt", "rollback", str(other), "--heuristic", "--contradict")
    assert "has ended the other way: this splits the transaction." in asked.err
    assert stage.run("indoubt", "rollback", str(other), "--heuristic", "--contradict", "--yes").status == 0


def test_explain_takes_a_transaction_and_answers_while_a_database_is_down(stage: Stage) -> None:
    one, other = stage.prepare(1, Decision.COMMIT)
    told = stage.json("indoubt", "explain", str(one.txid))
    assert [branch["now"] for branch in told["branches"]] == ["prepared", "prepared"]
    assert told["direction"] == "commit"
    stage.silence_payments()
    for name in (str(other), str(one.txid)):
        ran = stage.run("indoubt", "explain", name)
        assert ran.status == 4
        assert "COMMIT is recorded" in ran.out
        assert "no answer" in ran.out


def test_list_answers_from_the_databases_while_the_ledger_is_down(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gid, _ = stage.prepare(1, Decision.COMMIT)

    def refused(_settings: object, **_also: bool) -> NoReturn:
        raise LedgerUnavailable("no node answers")

    async def stays_open() -> None: ...

    def registry(_settings: object, _ledger_id: str) -> Registry:
        stage.orders.close = stage.payments.close = stays_open  # type: ignore[method-assign]
        found = Registry()
        found.add(stage.orders)
        found.add(stage.payments)
        return found

    monkeypatch.setattr(wiring, "opened", refused)
    monkeypatch.setattr(wiring, "registry", registry)
    ran = stage.run("indoubt", "list")
    assert ran.status == 4
    assert str(gid) in ran.out
    assert "the ledger does not answer" in ran.err
    shown = stage.json("indoubt", "list")
    assert {one["standing"] for one in shown["branches"]} == {"not_known"}
    assert shown["ledger_error"] == "no node answers"


def test_wrong_configuration_exits_2(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    for url in ("mysql://host/db", "postgresql://host/db", "raft://", "sqlite://relative.db"):
        (tmp_path / "undoubt.toml").write_text(f'[ledger]\nurl = "{url}"\n')
        for command in (("indoubt", "list"), ("tx", "list"), ("audit",), ("recover", "--once")):
            ran = stage.run(*command)
            assert ran.status == 2, (url, command, ran.err)


def test_recover_exits_5_where_it_finds_a_heuristic(stage: Stage) -> None:
    gid, other = stage.prepare(1, Decision.COMMIT)
    stage.orders.finish_by_hand(gid, Decision.ABORT)
    ran = stage.run("recover", "--once")
    assert ran.status == 5
    assert stage.payments.xact_status(other) is XactStatus.COMMITTED
    assert stage.run("recover", "--once").status == 0


def test_forget_is_recorded(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Verdict.FORGOTTEN)
    by_hand(stage, gid, Settled.HEURISTIC_COMMIT)
    assert stage.run("indoubt", "forget", str(gid), "--yes", "--note", "written again").status == 0
    (act,) = stage.json("audit")
    assert (act["verb"], act["note"]) == ("indoubt forget", "written again")
    assert replace(gid, branch=9) not in stage.ledger.known


def test_a_commit_beside_a_live_coordinator_is_warned_of(stage: Stage) -> None:
    """Broken if nobody is told that the coordinator may abort what an operator commits."""
    gid, _ = stage.prepare(1, Verdict.ACTIVE)
    asked = stage.run("tx", "resolve", str(gid.txid), "--commit", "--heuristic")
    assert (asked.status, "COORDINATOR IS ALIVE" in asked.err) == (2, True)
    assert gid in stage.orders.prepared


def test_an_impostor_is_told_to_who_looks_at_the_transaction(stage: Stage) -> None:
    """Broken if its branch is "not prepared" while somebody's transaction of its name holds its locks."""
    gid, other = stage.prepare(9, Decision.COMMIT)
    stage.orders.finish_by_hand(gid, Decision.COMMIT)
    stage.payments.finish_by_hand(other, Decision.COMMIT)
    stage.foreign(gid)
    for words in (("tx", "resolve", str(gid.txid), "--yes"), ("indoubt", "explain", str(gid.txid))):
        ran = stage.run(*words)
        assert ran.status == 0, ran.err
        assert f"{gid} is prepared in orders by role dba and is an impostor" in ran.out
        assert f"undoubt indoubt rollback {gid} --participant orders" in ran.out
        assert [one["gid"] for one in stage.json(*words)["impostors"]] == [str(gid)]
    refused = stage.run("indoubt", "commit", str(gid), "--yes")
    assert (refused.status, "is an impostor" in refused.err) == (5, True)
    forged = replace(stage.gid(8), tag=WRONG_TAG)
    stage.foreign(forged)
    unknown = stage.run("tx", "resolve", str(forged.txid), "--yes")
    assert (unknown.status, "is an impostor" in unknown.err) == (3, True)


def test_the_choice_for_a_live_transaction_is_the_one_that_works(stage: Stage) -> None:
    """Broken if people add --heuristic, which records a hazard, where ABORT can be recorded."""
    gid, other = stage.prepare(1, Verdict.ACTIVE)
    asked = stage.run("tx", "resolve", str(gid.txid))
    assert asked.status == 5
    assert "--rollback, which records ABORT first" in asked.err
    assert "--heuristic" not in asked.err
    assert stage.run("tx", "resolve", str(gid.txid), "--rollback", "--yes").status == 0
    assert (stage.orders.xact_status(gid), stage.payments.xact_status(other)) == (
        XactStatus.ABORTED,
        XactStatus.ABORTED,
    )
    assert stage.ledger.known == {}
