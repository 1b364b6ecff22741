"""etcd-io/raft's cases for changes of the configuration, all of them."""

from __future__ import annotations

from tests.coordinator.quorum.datadriven import Case, folder, parse
from undoubt.coordinator.raft.errors import ConfigRefused
from undoubt.coordinator.raft.membership import enter_joint, leave_joint, simple
from undoubt.coordinator.raft.messages import Change, ChangeKind, Configuration
from undoubt.coordinator.raft.tracker import Tracker

KINDS = {
    "v": ChangeKind.ADD_VOTER,
    "l": ChangeKind.ADD_LEARNER,
    "r": ChangeKind.REMOVE,
    "u": ChangeKind.UPDATE,
}
CASES = {
    "joint_autoleave.txt": 4,
    "joint_idempotency.txt": 3,
    "joint_learners_next.txt": 3,
    "joint_safety.txt": 15,
    "simple_idempotency.txt": 11,
    "simple_promote_demote.txt": 7,
    "simple_safety.txt": 11,
    "update.txt": 3,
    "zero.txt": 1,
}


def show(tracker: Tracker) -> list[str]:
    """The configuration and everybody's progress as those files write them."""

    def ids(nodes: frozenset[int]) -> str:
        return f"({' '.join(map(str, sorted(nodes)))})"

    configuration = tracker.configuration
    line = f"voters={ids(configuration.incoming)}"
    if configuration.outgoing:
        line += f"&&{ids(configuration.outgoing)}"
    if configuration.learners:
        line += f" learners={ids(configuration.learners)}"
    if configuration.learners_next:
        line += f" learners_next={ids(configuration.learners_next)}"
    lines = [line + (" autoleave" if configuration.auto_leave else "")]
    for node, progress in sorted(tracker.progress.items()):
        learner = " learner" if node in configuration.learners else ""
        pace = f"State{progress.pace.value.capitalize()}"
        lines.append(f"{node}: {pace} match={progress.match} next={progress.next}{learner}")
    return lines


def changed(configuration: Configuration, case: Case) -> Configuration:
    words = " ".join(case.given).split()
    changes = [Change(KINDS[word[0]], int(word[1:])) for word in words]
    match case.command:
        case "simple":
            return simple(configuration, changes)
        case "enter-joint":
            return enter_joint(
                configuration, changes, auto_leave=case.arguments.get("autoleave") == ("true",)
            )
        case "leave-joint":
            return leave_joint(configuration)
        case _:
            raise AssertionError(f"{case.where}: an unknown command {case.command}")


def run(cases: list[Case]) -> list[str]:
    """Each command sees the log one entry longer than the one before, failed or not."""
    tracker, wrong = Tracker(), []
    for last_index, case in enumerate(cases):
        try:
            tracker.configure(changed(tracker.configuration, case), last_index)
            answer = show(tracker)
        except ConfigRefused as refusal:
            answer = [str(refusal)]
        if answer != case.expected:
            wrong.append(f"{case.where}: {answer} instead of {case.expected}")
    return wrong


def test_outside_cases() -> None:
    """Broken if a change could leave two disjoint majorities, or treats a node other than asked."""
    files = {path.name: parse(path) for path in folder("confchange")}
    print({name: len(cases) for name, cases in files.items()})
    assert {name: len(cases) for name, cases in files.items()} == CASES
    assert [line for cases in files.values() for line in run(cases)] == []


def test_the_runner_rejects_wrong_expectations() -> None:
    """Broken if the runner passes whatever it is given."""
    case = Case("here:1", "simple", {}, ["v1"], ["voters=(1 2)"])
    assert run([case]) != []
