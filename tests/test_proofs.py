"""The proofs that CI runs besides the tests: the crash matrix, what others add to it, and the rest."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.pgbouncer import program_or_skip
from tests.prove import deploy, house
from tests.prove.cases import NODES, OWN_STEPS, OWN_STEPS_IN_RECOVERY, Case, Victim, cases
from tests.prove.control import control
from tests.prove.examples import NEEDS
from tests.prove.node_process import NodeStep
from tests.prove.processes import ROOT
from tests.prove.sidecar_cases import OF_OWN_DRIVER, CallerStep, SidecarVictim, Way, sidecar_cases
from undoubt.coordinator.protocols.steps import STEPS, TwoPhaseStep
from undoubt.participants.ids import Protocol
from undoubt.recovery.steps import RecoveryStep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


async def prove(*arguments: str) -> dict[str, Any]:
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.prove", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = ended.stdout.splitlines()
    assert len(lines) == 1, (ended.stdout, ended.stderr[-3000:])
    told: dict[str, Any] = json.loads(lines[0])
    assert ended.returncode == 0, (told, ended.stderr[-3000:])
    return told


async def test_deployment_files() -> None:
    """Broken if what is in deploy/ cannot be installed, does not run, or asks for what does not exist."""
    if (lacking := deploy.missing()) and os.environ.get("CI") != "true":
        pytest.skip("; ".join(lacking))
    told = await prove("deploy")
    assert told == dict.fromkeys(("helm", "systemd", "dockerfile", "dashboard", "alerts"), "ok")


async def test_circles_of_waits() -> None:
    """Broken if a deadlock through databases, prepared branches and locks is not ended by one victim."""
    told = await prove("deadlock", "--cycles", "12")
    assert (told["cycles"], told["victims"], told["broken_by_one"], told["hung"]) == (12, 12, 12, 0)
    assert told["prepared"] == 4
    assert told["control"] > 0


async def test_a_participant_fails_over() -> None:
    """Broken if a failover splits a transaction where a standby confirms, or splits one untold elsewhere."""
    told = await prove("failover", "--pairs", "1", "--async", "1")
    assert (told["failovers"], told["half_applied_sync"], told["acknowledged_lost"]) == (4, 0, 0)
    assert (told["untold_heuristics"], told["prepared_after"]) == (0, 0)
    assert told["half_applied_async"] > 0
    assert told["control"] == 2


async def test_locking_in_one_order() -> None:
    """Broken if the detector of deadlocks aborts a transaction of those that only wait."""
    told = await prove("contention", "--waits", "300", "--seconds", "5")
    assert (told["victims"], told["failed"]) == (0, 0)
    assert told["lock_waits"] >= 300
    assert told["control"] > 0


async def test_a_ledger_that_moves() -> None:
    """Broken if a move loses a decision or a branch in doubt, or leaves an old place that answers."""
    told = await prove("move", "--moves", "4", "--kills", "1", "--no-control")
    assert (told["moves"], told["lost"], told["half_applied"], told["prepared"]) == (4, 0, 0, 0)
    assert told["refused"] >= 4 + 3 * 2
    assert told["in_doubt"] > 0


async def test_the_crash_matrix() -> None:
    """Broken if a death at any named step splits a transaction, loses one, or leaves one in doubt."""
    told = await prove("crash")
    assert told["cases"] == len(cases()) >= 39
    assert (told["not_killed"], told["half_applied"]) == (0, 0)
    assert (told["acknowledged_lost"], told["prepared_after"]) == (0, 0)
    assert told["failures"] == []


def own(every: list[Case], words: list[str]) -> int:
    """How many of them ``--only words`` chooses: not all of the matrix above again."""
    count = sum(any(word in str(case) for word in words) for case in every)
    assert 0 < count < len(every)
    return count


async def test_the_crash_matrix_through_a_pooler() -> None:
    """Broken if the pooler's death splits or loses a transaction whose statements, PREPARE and COMMIT
    PREPARED went through whichever servers it chose. All of it: ``make prove PROOF=crash ARGS="--pooler
    payments"``."""
    program_or_skip()
    only = ["pooler at", "database at after_prepare"]
    told = await prove("crash", "--pooler", "payments", "--only", *only)
    assert told["cases"] == own(cases(pooler=True), only) >= 20
    assert (told["not_killed"], told["half_applied"]) == (0, 0)
    assert (told["acknowledged_lost"], told["prepared_after"]) == (0, 0)
    assert told["failures"] == []


@pytest.mark.parametrize("ledger", ["postgresql", "etcd"])
async def test_the_crash_matrix_on_a_ledger_of_the_users(ledger: str) -> None:
    """Broken if the death of the ledger's own server, or of a majority of its members, splits or loses a
    transaction whose ledger is rows or keys. All of it: ``make prove PROOF=crash ARGS="--ledger etcd"``."""
    only = ["ledger", "coordinator at after_decide"]
    told = await prove("crash", "--ledger", ledger, "--lanes", "2", "--only", *only)
    assert told["cases"] == own(cases(ledger=True), only) >= 11
    assert (told["not_killed"], told["half_applied"]) == (0, 0)
    assert (told["acknowledged_lost"], told["prepared_after"]) == (0, 0)
    assert told["failures"] == []


async def test_the_crash_matrix_of_three_phase_commit() -> None:
    """Broken if a death at one of its own steps, or of its termination's, splits a transaction. All of it:
    ``make prove PROOF=crash ARGS="--protocol 3pc"``."""
    only = ["precommit", "attempt"]
    told = await prove("crash", "--protocol", "3pc", "--only", *only)
    assert told["cases"] == own(cases(Protocol.THREE_PHASE), only) >= 20
    assert told["failures"] == []


async def test_the_crash_matrix_through_the_sidecar() -> None:
    """Broken if a service, a sidecar or both can die so that a transaction is split or lost, or a caller is
    told what is not so. All of it: ``make prove PROOF=crash ARGS="--door sidecar --ledger raft"``."""
    only = ["at commit_asked", "caller at after_prepare_by_caller", "sidecar at after_decide"]
    told = await prove("crash", "--door", "sidecar", "--only", *only)
    assert told["cases"] == sum(any(word in str(case) for word in only) for case in sidecar_cases()) == 10
    assert (told["not_killed"], told["half_applied"]) == (0, 0)
    assert (told["acknowledged_lost"], told["prepared_after"]) == (0, 0)
    assert told["failures"] == []


async def test_the_crash_matrix_through_the_sidecar_finds_a_planted_bug() -> None:
    """Broken if the matrix would not see half a transaction."""
    only = ["sidecar at before_decide"]
    found = await control("crash", "--door", "sidecar", "--only", *only, mutants=["commit-before-decide"])
    assert not found.holds
    assert found.result["half_applied"] >= 1


@pytest.mark.parametrize("protocol", list(Protocol))
def test_services_and_sidecars_die_at_every_step(protocol: Protocol) -> None:
    """Broken if a step that is added to a protocol, or to a service, is not one at which they die."""
    seen = {(case.victim, case.way, str(case.trap.step)) for case in sidecar_cases(protocol)}
    ways = [Way.THROUGH_SIDECAR] if protocol is Protocol.THREE_PHASE else list(Way)
    for victim, way, step in product(SidecarVictim, ways, (*CallerStep, *STEPS[protocol])):
        passes = way is Way.OWN_DRIVER or step not in OF_OWN_DRIVER
        assert ((victim, way, str(step)) in seen) is passes
    assert len(sidecar_cases()) >= 80


@pytest.mark.parametrize(
    ("protocol", "only"),
    [
        ("2pc", ["leader at after_decide", "followers at before_store_decision", "stopped at before_decide"]),
        ("3pc", ["leader at after_ledger_precommit", "majority at before_decide"]),
        (
            "paxos",
            [
                "uncopied",
                "outvoted",
                "heard",
                "leader at before_store_vote",
                "followers at after_store_promise",
            ],
        ),
    ],
)
async def test_some_of_the_crash_matrix_on_a_cluster(protocol: str, only: list[str]) -> None:
    """Broken if nodes that die at their worst steps, or a coordinator that was given up and goes on, split or
    lose a transaction, or if what a coordinator has committed and not recorded is recorded too late. All of
    it: ``make prove PROOF=crash ARGS="--ledger raft"``."""
    told = await prove("crash", "--protocol", protocol, "--ledger", "raft", "--lanes", "1", "--only", *only)
    assert told["cases"] == len(only)
    assert (told["not_killed"], told["half_applied"]) == (0, 0)
    assert (told["acknowledged_lost"], told["prepared_after"]) == (0, 0)
    assert told["failures"] == []


async def test_three_phase_commits_end_without_their_ledger() -> None:
    """Broken if the participants cannot end among themselves what a coordinator left at any of its steps."""
    told = await prove("without-ledger")
    assert told["cases"] >= 20
    assert told["in_doubt"] > 0
    assert (told["not_killed"], told["half_applied"], told["prepared_after"]) == (0, 0, 0)


async def test_a_partition_splits_skeens_termination_and_no_quorum() -> None:
    """Broken if the documented difference between the two is not there on real databases."""
    told = await prove("partition")
    assert (told["skeen_split"], told["quorum_split"], told["as_reviewed"]) == (True, False, True)


async def test_recovery_beside_live_work() -> None:
    """Broken if recovery touches a transaction whose coordinator is alive."""
    told = await prove("live-recovery", "--seconds", "30")
    assert told["scans"] >= 300
    assert told["seen_active"] >= 1000
    assert (told["aborted_alive"], told["left"]) == (0, 0)


@pytest.mark.parametrize("ledger", ["sqlite", "postgresql", "raft"])
async def test_a_key_commits_once(ledger: str) -> None:
    """Broken if two transactions with one key commit, or a repetition gets another result than the first."""
    counts = ["--keys", "20", "--kills", "4", "--kills-before", "2"]
    told = await prove("keys", "--ledger", ledger, *counts, *(["--no-control"] if ledger == "raft" else []))
    assert (told["calls"], told["keys"], told["executed"]) == (40, 20, 20)
    assert told["kills"] >= 6
    assert (told["half_made"], told["wrong_results"], told["unanswered"], told["left"]) == (0, 0, 0, 0)


async def test_messages_of_an_outbox_survive_every_death() -> None:
    """Broken if a message is lost, is one of a transaction that aborted, or overtakes another of its key."""
    told = await prove("relay", "--messages", "200", "--kills", "6")
    assert told["published"] >= 200
    assert told["kills"] >= 6
    assert (told["lost"], told["phantom"], told["out_of_order"], told["renamed"]) == (0, 0, 0, 0)
    assert (told["half_made"], told["left"]) == (0, 0)
    assert told["control"] >= 1


async def test_a_cluster_grows_and_shrinks_under_load() -> None:
    """Broken if a change of members loses a decision, or makes one fail."""
    told = await prove("grow")
    assert told["sizes"] == [3, 5, 3]
    assert (told["failed_decisions"], told["lost_decisions"]) == (0, 0)
    assert min(told["decisions_per_step"]) >= 500


async def test_acceptors_come_and_go_under_load() -> None:
    """Broken if a coordinator stayed with acceptors that are no members any more, or a transaction of Paxos
    Commit failed or was lost because members changed."""
    told = await prove("grow", "--protocol", "paxos")
    assert (told["sizes"], told["failed_decisions"], told["lost_decisions"]) == ([3, 5, 3], 0, 0)
    assert told["acceptors"][:2] == [[1, 2, 3], [1, 2, 3, 4, 5]]
    assert [len(acceptors) for acceptors in told["acceptors"]] == [3, 5, 3]


async def test_a_cluster_loses_nothing_that_it_answered() -> None:
    """Broken if a leader that is killed takes answered decisions with it, or a large node forgets some."""
    told = await prove("cluster", "--seconds", "1", "--kills", "2", "--finished", "100000")
    assert told["lost"] == 0
    assert len(told["next_commit_s"]) == 2
    assert told["large_node"]["kept"] is True


async def test_the_runbook() -> None:
    """Broken if a command of the runbook fails, prints something else, or does not repair what it is for. All
    sections: ``make prove PROOF=runbook``."""
    told = await prove("runbook", "--only", "When the alarm wakes you", "A node is down or behind")
    assert told["steps"] >= 9
    assert (told["failed"], told["failures"]) == (0, [])
    assert told["control"] >= 1


async def test_no_block_lies() -> None:
    """Broken if some way into a transaction and some way out of it end without an error and without a commit,
    hang, or cancel a task that is not inside."""
    told = await prove("blocks")
    assert told["cases"] >= 1000
    assert (told["silent"], told["hung"], told["wrong_task_cancelled"]) == (0, 0, 0)
    assert told["failures"] == []
    assert told["control"] >= 2


async def test_no_poison_stops_a_node() -> None:
    """Broken if a value out of bounds, in any field of any call, ends a node or one of its tasks, or disturbs
    the calls beside it. All of them: ``make prove PROOF=poison``."""
    told = await prove("poison", "--only", "Decide", "Members", "Acceptor", "OpenSession")
    assert told["applied_or_refused_by_node"] >= 2000
    assert (told["nodes_stopped"], told["tasks_dead"], told["others_disturbed"]) == (0, 0, 0)
    assert told["failures"] == []
    assert told["control"] >= 1


async def test_disks_that_hang_fail_and_fill_up() -> None:
    """Broken if a disk that takes nothing takes an answered decision with it, keeps a leader in office, or
    keeps its node from coming back. All of it: ``make prove PROOF=disk``."""
    only = ["hangs, leader", "sync fails, follower", "quota, leader", "at once, follower", "slow, leader"]
    told = await prove("disk", "--no-control", "--only", *only)
    assert told["cases"] == 5
    assert (told["lost"], told["stale_leader"], told["false_alarm"]) == (0, 0, 0)
    assert told["failures"] == []


async def test_damaged_files() -> None:
    """Broken if damage to what was acknowledged goes unnoticed, or what a crash leaves is taken for damage.
    More bytes: ``make prove PROOF=damage``."""
    told = await prove("damage", "--no-control", "--step", "197")
    assert told["flips_in_acknowledged"] >= 300
    assert (told["silent_loss"], told["false_alarm"]) == (0, 0)
    assert told["failures"] == []


async def test_one_fault_on_the_wire_to_the_databases() -> None:
    """Broken if a message or an answer that is lost, late or cut in half, anywhere in a transaction, makes
    undoubt tell what is not so, leave something prepared, or use a lost connection again. All messages:
    ``make prove PROOF=wire``."""
    told = await prove("wire", "--runs-max", "600")
    assert told["runs"] >= 500
    assert (told["wrong"], told["hung"], told["prepared_after"]) == (0, 0, 0)
    assert told["failures"] == []
    assert min(told["control_found"].values()) >= 1


async def test_an_application_may_have_packages_of_the_rooms_names() -> None:
    """Broken if an installed undoubt, in whatever way, hides an application's own ``coordinator``,
    ``participants`` or ``recovery``, or takes one for its own."""
    told = await prove("shadowed")
    assert (told["layouts"], told["failures"]) == (6, [])


async def test_upgrades_from_the_last_release() -> None:
    """Broken if this release cannot open what the last one has stored, or does not work beside it, so that
    money or a decision is lost in an upgrade."""
    told = await prove("upgrade")
    assert told["steps"] >= 6
    assert (told["failed"], told["failures"]) == (0, [])
    assert told["control"] == 2


async def test_sqlalchemys_own_twophase_commits_one_half() -> None:
    """Broken if the reason for this project has gone away (then say so in the README), or if the same program
    commits anything over undoubt's sessions."""
    told = await prove("sqlalchemy")
    assert told["runs"] == 40
    assert told["twophase_half_committed"] >= 1
    assert (told["undoubt_half_committed"], told["undoubt_committed"]) == (0, 0)
    assert told["undoubt_aborted"] == [40, 40, 40]


async def test_ledgers_that_were_set_back() -> None:
    """Broken if a ledger that has forgotten what it acknowledged splits a transaction, calls it aborted, or
    is believed without a word. All of it, with its control: ``make prove PROOF=setback``."""
    told = await prove("setback", "--no-control")
    assert told["cases"] >= 14
    assert (told["split"], told["false_proofs"], told["silent"]) == (0, 0, 0)
    assert told["led_to_verb"] >= 2
    assert (told["failures"], told["errors"]) == ([], [])


@pytest.mark.parametrize("protocol", list(Protocol))
def test_every_node_dies_at_every_step(protocol: Protocol) -> None:
    """Broken if a step that is added to a protocol, or to a node, is not one at which nodes die."""
    seen = {(case.victim, str(case.trap.step)) for case in cases(protocol, nodes=True) if not case.before}
    for step in (*STEPS[protocol], *OWN_STEPS[protocol]):
        for victim in NODES:
            assert (victim, str(step)) in seen
    assert {*OWN_STEPS_IN_RECOVERY, *(step for steps in OWN_STEPS.values() for step in steps)} == set(
        NodeStep
    )


def test_the_matrix_has_every_step_and_victim() -> None:
    """Broken if a step that is added to the code is not crashed at."""
    seen = {(case.victim, case.in_recovery, case.trap.step) for case in cases()}
    for step in TwoPhaseStep:
        for victim in (Victim.COORDINATOR, Victim.DATABASE, Victim.DATABASE_DOWN):
            assert (victim, False, str(step)) in seen
    for recovering in RecoveryStep:
        for victim in (Victim.RECOVERY, Victim.DATABASE, Victim.DATABASE_DOWN):
            assert (victim, True, str(recovering)) in seen


async def test_the_map_of_a_commit_is_true(tmp_path: Path) -> None:
    """Broken if ARCHITECTURE.md names other files than those that a commit enters."""
    entered, elsewhere = await house.commits(tmp_path, 3)
    assert house.unlike_the_map({file for file, _ in entered}, {file for file, _ in elsewhere}) == []


async def test_a_system_for_developers_comes_back_and_goes() -> None:
    """Broken if something that ``undoubt dev`` prints does not answer, does not come back, or stays."""
    told = await prove("dev")
    assert (told["livez"], told["dsns"], told["nodes"], told["killed"]) == (1, 2, 3, 6)
    assert told["left_behind"] == 0
    assert told["failures"] == []


async def test_attacks_on_a_sidecar() -> None:
    """Broken if a client without the right changes something, makes an internal error, or keeps others from
    their work. With its control: ``make prove PROOF=hostile``."""
    told = await prove("hostile", "--no-control")
    assert told["requests"] >= 10_000
    assert (told["changed"], told["disclosed"]) == (0, 0)
    assert (told["answered_5xx"], told["stalled"]) == (0, 0)


async def test_values_through_the_sidecar() -> None:
    """Broken if a value that goes to a database by the sidecar, or comes from it, is another one then. With
    its control: ``make prove PROOF=types``."""
    told = await prove("types", "--no-control")
    assert told["values"] >= 200
    assert (told["lost"], told["unlike_the_docs"], told["not_refused"]) == (0, 0, [])


async def test_two_sidecars() -> None:
    """Broken if the death of either of two sidecars that share a transaction splits it, leaves it in doubt,
    or makes one of them tell a wrong outcome. With its control: ``make prove PROOF=two-sidecars``."""
    told = await prove("two-sidecars", "--no-control")
    assert told["cases"] > 84
    assert (told["half_applied"], told["prepared_after"], told["told_wrong"]) == (0, 0, 0)


@pytest.mark.parametrize("example", NEEDS)
async def test_the_examples_of_the_sidecar(example: str) -> None:
    """Broken if an example that somebody copies does not do in both databases what it says."""
    if missing := [program for program in NEEDS[example] if shutil.which(program) is None]:
        pytest.skip(f"this example needs {', '.join(missing)}")
    assert await prove("examples", "--only", example) == {example: "ok"}


async def test_states_of_the_console() -> None:
    """Broken if the page of a state breaks a rule of accessibility or its policy, or runs what was planted in
    a name. All states, and the control: ``make prove PROOF=console``."""
    names = ["sign-in", "not-allowed", "overview-empty", "committed", "one-in-doubt", "dialog-unsafe"]
    told = await prove("console", "--no-control", "--only", *names, "database-down", "act-done", "planted")
    assert (told["states"], told["photographs"], told["failures"]) == (9, 38, [])


async def test_the_console_lives() -> None:
    """Broken if the page misses a change, differs from the command line, or shows old state as current. With
    bounds of time: ``make prove PROOF=console-live``."""
    told = await prove("console-live", "--events", "200", "--any-time")
    assert (told["missed"], told["stale_unmarked"]) == (0, 0)
