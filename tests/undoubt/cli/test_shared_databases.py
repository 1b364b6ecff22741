"""``undoubt indoubt`` where two participants are one database, or two databases have one name."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.undoubt.cli.stage import Stage
from undoubt.coordinator.ledger.contract import Verdict
from undoubt.participants.contract import Decision, Evidence, PreparedBranch
from undoubt.participants.ids import Foreign


def test_two_servers_with_one_name_are_two_prepared_transactions(stage: Stage) -> None:
    """Broken if what another program has prepared in two databases is shown in one of them only."""
    for xid, database in ((77, stage.orders), (78, stage.payments)):
        database.foreign.append(PreparedBranch(Foreign("xa-1"), "dba", "main", 1.0, 5.0, xid))
    shown = stage.json("indoubt", "list")["branches"]
    assert [(one["gid"], one["participant"]) for one in shown] == [("xa-1", "orders"), ("xa-1", "payments")]
    ran = stage.run("indoubt", "explain", "xa-1")
    assert (ran.status, "in orders and in payments" in ran.err.replace("\n", " ")) == (5, True)
    told = stage.json("indoubt", "explain", "xa-1", "--participant", "payments")
    assert told["branch"]["participant"] == "payments"


@pytest.mark.parametrize(("clone", "rows"), [(False, 1), (True, 2)])
def test_one_database_of_two_participants_is_shown_once(stage: Stage, clone: bool, rows: int) -> None:
    """A clone of a server shows the same transaction, with the same id and time, and it is another one."""
    one = PreparedBranch(Foreign("xa-1"), "dba", "main", 1.0, 5.0, 77, Evidence(77, 1, "00000001", "first"))
    other = replace(one, evidence=Evidence(77, None, "00000001", "second" if clone else "first"))
    stage.orders.foreign.append(one)
    stage.payments.foreign.append(other)
    assert len(stage.json("indoubt", "list")["branches"]) == rows


def test_two_participants_of_one_database_show_each_branch_once(stage: Stage) -> None:
    stage.prepare(1, Verdict.ABORTED)
    of_payments = stage.payments.in_doubt

    async def listed() -> object:
        return [*await of_payments(), *await stage.orders.in_doubt()]

    stage.payments.in_doubt = listed  # type: ignore[method-assign, assignment]
    shown = stage.json("indoubt", "list")["branches"]
    assert [(one["participant"]) for one in shown].count("orders") == 1
    assert len(shown) == 2


def one_database(stage: Stage) -> None:
    """Participant orders lists what is prepared in payments, too."""
    own, other = stage.orders.in_doubt, stage.payments
    listed = [
        PreparedBranch(
            gid, "scripted", "payments", 0.0, other.age_s, xid, Evidence(xid, other.system, other.timeline)
        )
        for gid, xid in other.prepared.items()
    ]

    async def of_both() -> object:
        return [*await own(), *listed]

    stage.orders.in_doubt = of_both  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("decision", [Decision.COMMIT, Verdict.ACTIVE])
def test_a_branch_of_a_silent_participant_is_no_impostor_in_another_one(
    stage: Stage, decision: Decision | Verdict
) -> None:
    """Broken if a branch is told to be an impostor, and may be rolled back as one, because the participant
    that its name has does not answer, while another participant of the same database does."""
    _, gid = stage.prepare(1, decision)
    one_database(stage)
    stage.silence_payments()
    shown = {one["gid"]: one for one in stage.run("indoubt", "list", "-o", "json").json["branches"]}[str(gid)]
    assert (shown["participant"], shown["standing"], shown["action"]) == ("orders", "not_known", "none")
    assert "'payments', which does not answer" in shown["why"]
    for order in ("rollback", "commit"):
        ran = stage.run("indoubt", order, str(gid), "--heuristic", "--contradict", "--yes")
        assert (ran.status, "does not answer" in ran.err) == (4, True)
    assert gid in stage.payments.prepared
    assert stage.orders.ended == []


def test_a_branch_that_is_prepared_between_two_lists_is_no_impostor(stage: Stage) -> None:
    """Broken if a live branch is told to be an impostor, since the list of its participant was read before it
    was prepared, and that of another participant of the same database afterwards."""
    _, gid = stage.prepare(1, Verdict.ACTIVE)
    one_database(stage)
    listing, lists = stage.payments.in_doubt, 0

    async def first_none() -> object:
        nonlocal lists
        lists += 1
        return [] if lists == 1 else await listing()

    stage.payments.in_doubt = first_none  # type: ignore[method-assign, assignment]
    shown = {one["gid"]: one for one in stage.json("indoubt", "list")["branches"]}[str(gid)]
    assert (shown["participant"], shown["standing"]) == ("payments", "active")


def test_the_command_that_is_shown_for_an_impostor_leaves_the_branch_alone(stage: Stage) -> None:
    """Broken if an operator who follows the page rolls back a branch of a live transaction, since its name
    alone does not say which of two databases is meant."""
    _, gid = stage.prepare(1, Verdict.ACTIVE)
    stage.foreign(gid)
    told = stage.run("indoubt", "explain", str(gid.txid)).out
    command = re.search(r"`undoubt (indoubt rollback [^`]*)`", told)
    assert command is not None
    assert stage.run(*command.group(1).split(), "--yes").status == 0
    assert gid in stage.payments.prepared
    assert [one.gid for one in stage.orders.ended] == [gid]
