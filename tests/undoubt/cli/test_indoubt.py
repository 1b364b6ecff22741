"""``undoubt indoubt``: what it shows, what it refuses, what it records, and with which status it ends."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import pytest

from tests.undoubt.cli.stage import NONCE, WRONG_TAG, Stage, aged
from undoubt.coordinator.ledger.contract import Heuristic, SessionInfo, SessionState, Verdict
from undoubt.participants.contract import Decision, PreparedBranch, Settled, Waiting, XactStatus
from undoubt.participants.ids import Foreign, Gid

# ------------------------------------------------------------------------------------------ list


def test_list_shows_every_standing_with_its_safe_action(stage: Stage) -> None:
    stage.prepare(1, Decision.COMMIT)
    stage.prepare(2, Verdict.ABORTED)
    stage.prepare(3, Verdict.ACTIVE)
    stage.prepare(4, Verdict.FORGOTTEN)
    stage.foreign(Foreign("someone's"))
    stage.foreign(stage.gid(1, ledger="zzzzzzzzzz"))
    stage.orders.other_ledgers = frozenset({"yyyyyyyyyy"})
    stage.foreign(stage.gid(1, ledger="yyyyyyyyyy"))
    shown = stage.json("indoubt", "list")
    assert set(shown) == {"branches", "heuristics", "unreachable", "ledger_error"}
    actions = {(one["standing"], one["action"]) for one in shown["branches"]}
    assert actions == {
        ("committed", "commit"),
        ("aborted", "rollback"),
        ("active", "wait"),
        ("forgotten", "decide"),
        ("foreign", "none"),
        ("lost_ledger", "decide"),
        ("other_ledger", "none"),
    }
    assert len(shown["branches"]) == 11
    first = shown["branches"][0]
    assert set(first) == {
        "gid", "txid", "participant", "protocol", "standing", "why", "fix", "action", "database", "owner",
        "owner_gone", "xid", "prepared_at", "age_s", "siblings",
    }  # fmt: skip
    assert first["prepared_at"].endswith("Z")


def test_list_leaves_out_what_is_younger(stage: Stage) -> None:
    """Broken if an operator who asks for what is stuck is shown live traffic, whose branches must be left
    alone, or is not shown what is stuck: of this ledger, of another owner, or as a heuristic outcome."""
    stuck, _ = stage.prepare(1, Verdict.ACTIVE)
    aged(stage, stuck, 301)
    stage.foreign(Foreign("someone's"), age_s=300)
    late, new = stage.gid(2), stage.gid(3)
    for gid, age_s in ((late, 330), (new, 30)):
        stage.ledger.known[gid] = Heuristic(
            gid, Settled.HEURISTIC_HAZARD, Decision.COMMIT, time.time() - age_s
        )
    shown = stage.json("indoubt", "list", "--older-than", "5m")
    assert [one["gid"] for one in shown["branches"]] == [str(stuck), "someone's"]
    assert [one["gid"] for one in shown["heuristics"]] == [str(late)]
    assert len(stage.json("indoubt", "list")["branches"]) == 3
    told = stage.run("indoubt", "list", "--older-than", "1h")
    assert (told.status, told.out) == (0, "")
    assert "nothing is prepared, and no heuristic outcome is open for 1h 00m or longer" in told.err


def impostors(stage: Stage) -> tuple[Gid, Gid, Gid]:
    """In orders, for two hours: under a name that was made up, under another database's, and under one of a
    branch that is committed, with its transaction id not the one that was recorded."""
    forged = replace(stage.gid(8), tag=WRONG_TAG)
    elsewhere = stage.gid(7, 2, "payments")
    gid, other = stage.prepare(9, Decision.COMMIT)
    stage.orders.finish_by_hand(gid, Decision.COMMIT)
    stage.payments.finish_by_hand(other, Decision.COMMIT)
    stage.ledger.verdicts[elsewhere.txid] = Verdict.ABORTED
    for name in (forged, elsewhere, gid):
        stage.foreign(name, age_s=7_200)
    return forged, elsewhere, gid


def test_list_marks_impostors_and_says_why(stage: Stage) -> None:
    names = impostors(stage)
    shown = stage.json("indoubt", "list")["branches"]
    told = {one["gid"]: (one["standing"], one["action"], one["owner"], one["why"]) for one in shown}
    assert set(told) == {str(name) for name in names}
    for name, why in zip(
        names, ("its tag is wrong", "another database", "its transaction id is"), strict=True
    ):
        standing, action, owner, said = told[str(name)]
        assert (standing, action, owner) == ("impostor", "none", "dba")
        assert why in said
        page = stage.run("indoubt", "list").out
        assert said in page
        assert page.count(str(name)) == 2, "in the list, and with the reason"


def copied(stage: Stage) -> Gid:
    """A branch of orders, whose name somebody else has prepared in payments too, which is asked first."""
    gid, _ = stage.prepare(1, Verdict.ABORTED)
    stage.payments.name = "aaa"  # the first to be asked, and the participant has another name now
    stage.orders.names = frozenset({"shop", "orders"})
    stage.orders.name = "shop"
    stage.payments.foreign.append(PreparedBranch(gid, "dba", "aaa", time.time(), 1.0, 77))
    return gid


def test_list_shows_the_branch_and_an_impostor_that_has_its_name_elsewhere(stage: Stage) -> None:
    """Broken if whoever prepares a name in another database keeps people from ending the branch, or if what
    is prepared there is hidden by the branch."""
    gid = copied(stage)
    shown = [one for one in stage.json("indoubt", "list")["branches"] if one["gid"] == str(gid)]
    assert {(one["participant"], one["standing"]) for one in shown} == {
        ("shop", "aborted"),
        ("aaa", "impostor"),
    }
    assert stage.json("indoubt", "explain", str(gid))["decision"]["recorded"] != ""
    assert stage.json("indoubt", "explain", str(gid), "--participant", "aaa")["branch"]["owner"] == "dba"


def test_an_impostor_beside_its_branch_is_ended_alone(stage: Stage) -> None:
    """Broken if an operator who means the copy ends the branch, or the other way round."""
    gid = copied(stage)
    ran = stage.run("indoubt", "rollback", str(gid), "--participant", "aaa", "--yes")
    assert (ran.status, [one.gid for one in stage.payments.ended]) == (0, [gid])
    assert gid in stage.orders.prepared
    stage.payments.foreign.append(stage.payments.ended.pop())
    assert stage.run("indoubt", "rollback", str(gid), "--yes").status == 0
    assert gid not in stage.orders.prepared
    assert (stage.payments.ended, len(stage.payments.foreign)) == ([], 1)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_impostor_is_neither_counted_nor_waited_for_nor_committed(stage: Stage, number: int) -> None:
    name = impostors(stage)[number]
    assert stage.run("indoubt", "check").status == 0
    for waited in ([], [str(name)], [str(name.txid)]):
        assert stage.run("indoubt", "wait", *waited, "--timeout", "0").status == 0
    told = stage.json("indoubt", "explain", str(name))
    assert told["safe_action"] == {"action": "none", "command": None}
    assert told["decision"]["why"] in told["proof"][0]
    assert "no transaction waits for it" in " ".join(told["proof"])
    trace, known = list(stage.ledger.trace), dict(stage.ledger.known)
    for heuristic in ([], ["--heuristic"]):
        ran = stage.run("indoubt", "commit", str(name), *heuristic, "--yes")
        assert ran.status != 0
        assert "impostor" in ran.err
    assert (stage.ledger.known, {*stage.ledger.trace} - {"outcomes"}) == (known, {*trace} - {"outcomes"})
    assert name in {one.gid for one in stage.orders.foreign}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_rollback_of_an_impostor_shows_it_and_asks_and_records_nothing(stage: Stage, number: int) -> None:
    """Broken if an operator cannot get rid of what holds locks under a name of ours, or ends it unseen, or it
    becomes part of a transaction's history."""
    name = impostors(stage)[number]
    trace, known = list(stage.ledger.trace), dict(stage.ledger.known)
    decisions = dict(stage.ledger.decisions)
    why = stage.json("indoubt", "explain", str(name))["decision"]["why"]
    ran = stage.run("indoubt", "rollback", str(name))
    assert ran.status == 2
    assert name in {one.gid for one in stage.orders.foreign}, "nobody said yes"
    for told in (why, "by role dba", "database orders", "transaction id 77"):
        assert told in ran.err.replace("\n", " ")
    ran = stage.run("indoubt", "rollback", str(name), "--yes")
    assert (ran.status, ran.out) == (0, f"rolled back: {name}\n")
    assert why in ran.err.replace("\n", " ")
    assert [one.gid for one in stage.orders.ended] == [name]
    assert (stage.ledger.known, stage.ledger.decisions) == (known, decisions)
    assert {*stage.ledger.trace} - {"outcomes"} == {*trace} - {"outcomes"}
    assert stage.run("indoubt", "rollback", str(name), "--yes").status == 3, "it is gone"


def test_list_asks_the_ledger_after_the_participants(stage: Stage) -> None:
    """The other way round, what is decided in between is shown as undecided, and rolled back by hand."""
    gids = stage.prepare(1, Verdict.ACTIVE)
    listing = stage.orders.in_doubt

    async def listed_and_decided() -> object:
        stage.ledger.trace.append("listed")
        found = await listing()
        stage.ledger.verdicts[gids[0].txid] = Verdict.COMMITTED
        return found

    stage.orders.in_doubt = listed_and_decided  # type: ignore[method-assign, assignment]
    assert {one["standing"] for one in stage.json("indoubt", "list")["branches"]} == {"committed"}
    assert stage.ledger.trace == ["listed", "outcomes"]


def test_list_shows_whole_gids_and_remarks_go_to_stderr(stage: Stage) -> None:
    empty = stage.run("indoubt", "list")
    assert (empty.status, empty.out) == (0, "")
    assert "nothing is prepared" in empty.err
    gid, other = stage.prepare(1, Verdict.ABORTED)
    shown = stage.run("indoubt", "list")
    assert str(gid) in shown.out
    assert str(other) in shown.out
    assert shown.err == ""


def test_a_participant_that_is_down_hides_no_other_and_exits_4(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Verdict.ABORTED)
    stage.silence_payments()
    ran = stage.run("indoubt", "list")
    assert ran.status == 4
    assert str(gid) in ran.out
    assert "connection refused" in ran.err
    assert [one["participant"] for one in stage.json("indoubt", "list")["unreachable"]] == ["payments"]


# ------------------------------------------------------------------------------------------ commit, rollback


def test_commit_carries_out_a_recorded_commit_without_asking(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Decision.COMMIT)
    ran = stage.run("indoubt", "commit", str(gid), "-o", "json")
    assert ran.status == 0
    assert ran.json == {"gid": str(gid), "result": "committed"}
    assert stage.orders.xact_status(gid) is XactStatus.COMMITTED
    assert stage.ledger.known == {}


@pytest.mark.parametrize(
    "verdict", [Verdict.ABORTED, Verdict.ACTIVE, Verdict.FORGOTTEN, Verdict.ASK_PROTOCOL]
)
def test_commit_without_a_recorded_commit_is_refused_with_5(stage: Stage, verdict: Verdict) -> None:
    """A committed branch of an aborted transaction is half a transfer."""
    gid, _ = stage.prepare(1, verdict)
    ran = stage.run("indoubt", "commit", str(gid), "--yes")
    assert ran.status == 5
    assert "--heuristic" in ran.err
    assert gid in stage.orders.prepared
    assert stage.ledger.known == {}


def test_heuristic_commit_is_recorded_before_and_after(stage: Stage) -> None:
    """A crash between act and record would leave a half-applied transaction without a trace."""
    gid, _ = stage.prepare(1, Verdict.ABORTED)
    ran = stage.run("indoubt", "commit", str(gid), "--heuristic", "--note", "agreed", "--yes")
    assert ran.status == 0
    assert stage.ledger.trace[-2:] == ["heuristic_hazard", "heuristic_commit"]
    recorded = stage.ledger.known[gid]
    assert (recorded.kind, recorded.decision) == (Settled.HEURISTIC_COMMIT, Decision.ABORT)
    assert "agreed" in recorded.note
    assert stage.orders.xact_status(gid) is XactStatus.COMMITTED


def test_heuristic_that_agrees_with_the_decision_is_none(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Decision.COMMIT)
    assert stage.run("indoubt", "commit", str(gid), "--heuristic", "--yes").status == 0
    assert stage.ledger.known == {}


@pytest.mark.parametrize("verdict", [Verdict.ABORTED, Verdict.ACTIVE])
def test_rollback_records_abort_first(stage: Stage, verdict: Verdict) -> None:
    """Rolled back before ABORT is recorded, the coordinator could still commit the other branches."""
    gid, other = stage.prepare(1, verdict)
    seen: list[list[str]] = []
    stage.orders.before = lambda call, _gid: _note(seen, stage)
    assert stage.run("indoubt", "rollback", str(gid), "--yes").status == 0
    [[*looked, last]] = seen
    assert (set(looked), last) == ({"outcomes"}, "decide abort"), "looked at, and recorded"
    assert stage.orders.xact_status(gid) is XactStatus.ABORTED
    assert other in stage.payments.prepared


async def _note(seen: list[list[str]], stage: Stage) -> None:
    seen.append(list(stage.ledger.trace))


def test_rollback_against_a_recorded_commit_is_refused_with_5(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Decision.COMMIT)
    ran = stage.run("indoubt", "rollback", str(gid), "--yes")
    assert ran.status == 5
    assert "COMMIT is recorded" in ran.err
    assert gid in stage.orders.prepared


def test_heuristic_rollback_against_a_commit_is_recorded(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Decision.COMMIT)
    assert stage.run("indoubt", "rollback", str(gid), "--heuristic", "--yes").status == 0
    assert stage.ledger.known[gid].kind is Settled.HEURISTIC_ROLLBACK
    assert stage.orders.xact_status(gid) is XactStatus.ABORTED


def test_a_forgotten_branch_needs_heuristic(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Verdict.FORGOTTEN)
    assert stage.run("indoubt", "rollback", str(gid), "--yes").status == 5
    assert gid in stage.orders.prepared
    assert stage.run("indoubt", "rollback", str(gid), "--heuristic", "--yes").status == 0
    assert stage.ledger.known[gid].decision is None


def test_a_branch_that_somebody_ended_otherwise_is_recorded_and_exits_5(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Decision.COMMIT)
    stage.orders.script.commit = [Settled.HEURISTIC_ROLLBACK]
    ran = stage.run("indoubt", "commit", str(gid))
    assert ran.status == 5
    assert stage.ledger.known[gid].kind is Settled.HEURISTIC_ROLLBACK


@pytest.mark.parametrize("command", ["commit", "rollback"])
def test_what_is_not_ours_is_never_touched(stage: Stage, command: str) -> None:
    """Not even with --heuristic: another system's recovery relies on it."""
    for name in (Foreign("someone's"), stage.gid(1, ledger="zzzzzzzzzz")):
        stage.foreign(name)
        ran = stage.run("indoubt", command, str(name), "--heuristic", "--yes")
        assert ran.status == 5
    assert stage.orders.trace() == []


def test_the_list_says_what_was_decided_after_a_heuristic_outcome(stage: Stage) -> None:
    """Broken if a person who compares the two has to look for the decision elsewhere."""
    gid, _ = stage.prepare(1, Verdict.FORGOTTEN)
    assert stage.run("indoubt", "rollback", str(gid), "--heuristic", "--yes").status == 0
    [found] = stage.json("indoubt", "list")["heuristics"]
    assert (found["kind"], found["decision"]) == ("heuristic_rollback", None)
    stage.ledger.record(gid.txid, Decision.COMMIT, ())
    [found] = stage.json("indoubt", "list")["heuristics"]
    assert (found["kind"], found["decision"]) == ("heuristic_rollback", "commit")


@pytest.mark.parametrize("command", ["commit", "rollback", "explain"])
def test_an_unknown_branch_exits_3_and_4_where_not_all_answered(stage: Stage, command: str) -> None:
    """Not found is a fact; with a database down it is only a guess."""
    yes = [] if command == "explain" else ["--yes"]
    assert stage.run("indoubt", command, str(stage.gid(9)), *yes).status == 3
    stage.silence_payments()
    ran = stage.run("indoubt", command, str(stage.gid(9)), *yes)
    assert ran.status == 4
    assert "payments" in ran.err


def test_a_branch_that_stays_busy_exits_6(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undoubt.recovery.operator.resolve.BUSY_S", 0.05)
    monkeypatch.setattr("undoubt.recovery.operator.resolve.BUSY_PAUSE_S", 0.001)
    gid, _ = stage.prepare(1, Decision.COMMIT)
    stage.orders.script.commit = [Settled.BUSY]
    assert stage.run("indoubt", "commit", str(gid)).status == 6


# ------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    "args", [("rollback",), ("commit", "--heuristic"), ("rollback", "--heuristic"), ("forget",)]
)
def test_without_a_terminal_and_without_yes_it_is_refused(stage: Stage, args: tuple[str, ...]) -> None:
    """A script that forgot --yes must not hang on a prompt, and must not destroy."""
    gid, _ = stage.prepare(1, Verdict.ABORTED)
    ran = stage.run("indoubt", args[0], str(gid), *args[1:])
    assert ran.status == 2
    assert "--yes" in ran.err
    assert gid in stage.orders.prepared


@pytest.mark.parametrize(("answer", "status", "left"), [("y", 0, False), ("n", 1, True), ("", 1, True)])
def test_on_a_terminal_it_asks(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, answer: str, status: int, left: bool
) -> None:
    gid, _ = stage.prepare(1, Verdict.ABORTED)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _prompt: answer)
    ran = stage.run("indoubt", "rollback", str(gid))
    assert ran.status == status
    assert (gid in stage.orders.prepared) is left


# ------------------------------------------------------------------------------------------ heuristics


def test_heuristics_are_listed_until_forgotten(stage: Stage) -> None:
    gid = stage.gid(1)
    stage.ledger.known[gid] = Heuristic(gid, Settled.HEURISTIC_ROLLBACK, Decision.COMMIT, time.time() - 30)
    (shown,) = stage.json("indoubt", "list")["heuristics"]
    assert (shown["kind"], shown["decision"], shown["gid"]) == ("heuristic_rollback", "commit", str(gid))
    assert 29 < shown["age_s"] < 90
    assert str(gid) in stage.run("indoubt", "list").out
    assert stage.run("indoubt", "forget", str(gid), "--yes").status == 0
    assert stage.json("indoubt", "list")["heuristics"] == []
    assert stage.run("indoubt", "forget", str(gid), "--yes").status == 3
    assert stage.run("indoubt", "forget", "someone's", "--yes").status == 3


# ------------------------------------------------------------------------------------------ check, wait


def test_check_exits_7_only_for_what_is_old_enough(stage: Stage) -> None:
    assert stage.run("indoubt", "check").status == 0
    gid, _ = stage.prepare(1, Verdict.ACTIVE)
    assert stage.run("indoubt", "check").status == 7
    assert stage.run("indoubt", "check", "--older-than", "5m").status == 0
    aged(stage, gid, 301)
    ran = stage.run("indoubt", "check", "--older-than", "5m", "-o", "json")
    assert ran.status == 7
    assert (ran.json["in_doubt"], ran.json["older_than_s"]) == (1, 300)
    assert [one["gid"] for one in ran.json["branches"]] == [str(gid)]


def test_check_counts_open_heuristics_and_no_foreign_branch(stage: Stage) -> None:
    stage.foreign(Foreign("someone's"), age_s=9_999)
    stage.foreign(stage.gid(1, ledger="zzzzzzzzzz"), age_s=9_999)
    assert stage.run("indoubt", "check").status == 7, "of a ledger that was lost"
    stage.orders.other_ledgers = frozenset({"zzzzzzzzzz"})
    assert stage.run("indoubt", "check").status == 0
    gid = stage.gid(1)
    stage.ledger.known[gid] = Heuristic(gid, Settled.HEURISTIC_HAZARD, Decision.COMMIT, time.time() - 30)
    assert stage.run("indoubt", "check").status == 7
    assert stage.run("indoubt", "check", "--older-than", "1h").status == 0


def test_check_is_not_ok_while_a_participant_is_silent(stage: Stage) -> None:
    """Silence is not health; but what was found all the same weighs more."""
    stage.silence_payments()
    assert stage.run("indoubt", "check").status == 4
    stage.payments.down = None
    stage.prepare(1, Verdict.ABORTED)
    stage.silence_payments()
    assert stage.run("indoubt", "check").status == 7


def test_wait_ends_when_the_branch_is_finished(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undoubt.cli.indoubt.WAIT_PAUSE_S", 0.001)
    gid, other = stage.prepare(1, Decision.COMMIT)
    listing, looks = stage.orders.in_doubt, [0]

    async def third_time_lucky() -> object:
        looks[0] += 1
        if looks[0] == 3:
            stage.orders.finish_by_hand(gid, Decision.COMMIT)
        return await listing()

    stage.orders.in_doubt = third_time_lucky  # type: ignore[method-assign, assignment]
    shown = stage.json("indoubt", "wait", str(gid))
    assert (shown["name"], looks[0]) == (str(gid), 3)
    assert other in stage.payments.prepared


def test_wait_gives_up_with_6(stage: Stage) -> None:
    gid, other = stage.prepare(1, Decision.COMMIT)
    stage.orders.finish_by_hand(gid, Decision.COMMIT)
    assert stage.run("indoubt", "wait", str(gid), "--timeout", "0").status == 0
    assert stage.run("indoubt", "wait", str(gid.txid), "--timeout", "0").status == 6
    assert stage.run("indoubt", "wait", "--timeout", "0").status == 6
    stage.payments.finish_by_hand(other, Decision.COMMIT)
    assert stage.run("indoubt", "wait", "--timeout", "0").status == 0
    stage.silence_payments()
    ran = stage.run("indoubt", "wait", "--timeout", "0")
    assert ran.status == 6
    assert "payments" in ran.err


# ------------------------------------------------------------------------------------------ explain


def test_explain_a_committed_branch(stage: Stage) -> None:
    gid, other = stage.prepare(1, Decision.COMMIT)
    stage.payments.finish_by_hand(other, Decision.COMMIT)
    stage.orders.waiting.append(Waiting("orders/4711", str(gid.txid), "t1", 4711, None))
    stage.orders.waiting.append(Waiting("orders/9", "orders/8", "t2", 9, None))
    shown = stage.json("indoubt", "explain", str(gid))
    assert shown["decision"]["standing"] == shown["decision"]["recorded"] + "ted"
    assert [(one["vote"], one["now"]) for one in shown["votes"]] == [
        ("prepared", "prepared"),
        ("prepared", "not_prepared"),
    ]
    assert shown["blocks"]["sessions"] == [{"waiter": "orders/4711", "pid": 4711}]
    assert shown["safe_action"] == {"action": "commit", "command": f"undoubt indoubt commit {gid}"}
    assert any("very branch that voted" in line for line in shown["proof"])
    page = stage.run("indoubt", "explain", str(gid)).out
    assert f"\n  undoubt indoubt commit {gid}\n" in page  # in one piece, to be copied
    for said in (str(gid), "COMMIT is recorded", "orders/4711", "Vacuum", "Safe action", "Proof"):
        assert said in page


def test_explain_warns_of_a_branch_that_is_not_the_one_that_voted(stage: Stage) -> None:
    """After a restore a database may hold another transaction under the same name."""
    gid, _ = stage.prepare(1, Decision.COMMIT)
    voted = stage.orders.prepared[gid]
    stage.orders.prepared[gid] += 1
    told = stage.json("indoubt", "explain", str(gid))
    assert f"its transaction id is {voted + 1}, and the decision was recorded of {voted}" in told["proof"][0]
    assert "was restored" in told["proof"][1]
    assert told["safe_action"] == {"action": "none", "command": None}


def test_explain_an_aborted_branch_proves_it_by_the_session(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Verdict.ABORTED)
    shown = stage.json("indoubt", "explain", str(gid))
    assert shown["session"]["state"] == "closed"
    assert {one["vote"] for one in shown["votes"]} == {"not_recorded"}
    assert any("session 1 (shop) is stored as closed" in line for line in shown["proof"])
    stage.ledger.session_list[:] = [SessionInfo(1, NONCE, "shop", SessionState.OPEN, 2, 10.0)]
    proof = stage.json("indoubt", "explain", str(gid))["proof"]
    assert any("is 2, and this is number 1" in line for line in proof)


def test_explain_promises_nothing_without_proof(stage: Stage) -> None:
    """For a forgotten or foreign branch no action is safe, and none may be suggested."""
    gid, _ = stage.prepare(1, Verdict.FORGOTTEN)
    stage.foreign(Foreign("someone's"))
    for name in (str(gid), "someone's"):
        shown = stage.json("indoubt", "explain", name)
        assert shown["safe_action"]["command"] is None
        page = stage.run("indoubt", "explain", name).out
        assert "undoubt indoubt commit" not in page
        assert "undoubt indoubt rollback" not in page


def test_explain_an_active_branch_says_leave_it(stage: Stage) -> None:
    gid, _ = stage.prepare(1, Verdict.ACTIVE)
    stage.silence_payments()
    shown = stage.json("indoubt", "explain", str(gid))
    assert shown["safe_action"]["action"] == "wait"
    assert "leave it alone" in stage.run("indoubt", "explain", str(gid)).out


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Settled.HEURISTIC_ROLLBACK, "is not in its database"),
        (Settled.HEURISTIC_HAZARD, "Nothing proves"),
    ],
)
def test_explain_a_heuristic_outcome_says_what_is_left_to_do(stage: Stage, kind: Settled, said: str) -> None:
    """It is no longer prepared: not found would leave the operator alone with half a transfer."""
    gid, other = stage.prepare(1, Decision.COMMIT)
    stage.orders.finish_by_hand(gid, Decision.ABORT)
    stage.payments.finish_by_hand(other, Decision.COMMIT)
    stage.ledger.known[gid] = Heuristic(gid, kind, Decision.COMMIT, time.time(), "seen in the log")
    shown = stage.json("indoubt", "explain", str(gid))
    assert shown["heuristic"]["kind"] == str(kind)
    assert shown["command"] == f"undoubt indoubt forget {gid}"
    assert shown["transaction"]["decision"] == "commit"
    page = stage.run("indoubt", "explain", str(gid)).out
    for word in (said, "payments", "seen in the log", f"\n  undoubt indoubt forget {gid}\n"):
        assert word in page
    assert stage.run("indoubt", "forget", str(gid), "--yes").status == 0
    assert stage.json("indoubt", "explain", str(gid))["command"] is None
    assert stage.run("indoubt", "explain", str(other)).status == 3
