"""The judges see what they are for: else a run would pass because nobody looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.simulation.agents import AgentRows
from tests.simulation.holders import Holders
from tests.simulation.judge import Violation
from tests.simulation.promises import Promises
from tests.simulation.rows import Rows
from undoubt.coordinator.paxos import (
    ABORTED,
    FIRST,
    Accepted,
    AcceptorRecord,
    Ballot,
    BranchInstance,
    Known,
    Marks,
    Phase1b,
    Value,
)
from undoubt.coordinator.quorum import Joint
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.three_phase import BranchState, Charter, Event, StateRow, Termination

TXID = TxId(1, "0123456789abcdef", 1)
NODES = Joint(frozenset({1, 2, 3}))
BRANCHES = (BranchInstance(1, "orders"), BranchInstance(2, "payments"))
PREPARED = Value(True)
LATER = Ballot(1, 7)
NAMES = ("orders", "payments", "stock")
GIDS = [Gid("abcdefghij", Protocol.THREE_PHASE, TXID, number, name) for number, name in enumerate(NAMES, 1)]
CHARTER = Charter(tuple(GIDS), Termination.QUORUM)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    Violation.first = None


def record(value: Value, ballot: Ballot = FIRST, acceptors: Joint = NODES) -> AcceptorRecord:
    """Both branches have voted the same."""
    accepted = (Accepted(ballot, value), Accepted(ballot, value))
    return AcceptorRecord(TXID, acceptors, ballot, Known(BRANCHES, accepted))


def wrong_value_in_a_ballot(judge: Promises) -> None:
    judge.stored(1, record(PREPARED))
    judge.stored(2, record(ABORTED))


def two_chosen_values(judge: Promises) -> None:
    for node, value, ballot in (
        (1, PREPARED, FIRST),
        (2, PREPARED, FIRST),
        (2, ABORTED, LATER),
        (3, ABORTED, LATER),
    ):
        judge.stored(node, record(value, ballot))


def a_promise_that_falls(judge: Promises) -> None:
    judge.stored(1, record(ABORTED, LATER))
    judge.stored(1, record(PREPARED))


def other_acceptors(judge: Promises) -> None:
    judge.stored(1, record(PREPARED))
    judge.stored(2, record(PREPARED, acceptors=Joint(frozenset({2, 3, 4}))))


def told_before_stored(judge: Promises) -> None:
    judge.answers(1, Phase1b(TXID, 1, LATER, Known()))


def begun_anew_below_the_mark(judge: Promises) -> None:
    judge.forgot(1, Marks(2, ((1, 2),)))
    judge.stored(1, record(PREPARED))


def committed_by_a_minority(judge: Promises) -> None:
    judge.stored(1, record(PREPARED))
    judge.acts(str(TXID), "a branch ends", "commit")


def rolled_back_although_chosen(judge: Promises) -> None:
    judge.stored(1, record(PREPARED))
    judge.stored(3, record(PREPARED))
    judge.acts(str(TXID), "a branch ends", "abort")


@pytest.mark.parametrize(
    "wrong",
    [
        wrong_value_in_a_ballot,
        two_chosen_values,
        a_promise_that_falls,
        other_acceptors,
        told_before_stored,
        begun_anew_below_the_mark,
        committed_by_a_minority,
        rolled_back_although_chosen,
    ],
    ids=lambda wrong: wrong.__name__,
)
def test_acceptors_that_do_wrong_are_seen(wrong: object) -> None:
    """Broken if an acceptor, a recovery or a coordinator may do so unseen."""
    assert callable(wrong)
    with pytest.raises(Violation):
        wrong(Promises())


def test_acceptors_that_do_right_are_not_accused() -> None:
    """Broken if whatever is told counts as wrong."""
    judge = Promises()
    judge.stored(1, record(PREPARED))
    judge.stored(3, AcceptorRecord(TXID, NODES, LATER))
    judge.answers(3, Phase1b(TXID, 3, LATER, Known()))
    judge.stored(2, record(PREPARED, LATER))
    judge.stored(3, record(PREPARED, LATER))
    judge.acts(str(TXID), "a branch ends", "commit")
    assert judge.outcomes == {str(TXID): "commit"}


def a_later_holder(judge: Holders) -> None:
    judge.granted("job", 1, shared=False, floor=0)
    judge.certain("job", 1)
    judge.granted("job", 2, shared=False, floor=0)
    judge.certain("job", 1)


def a_later_shared_holder(judge: Holders) -> None:
    judge.granted("job", 1, shared=False, floor=0)
    judge.granted("job", 2, shared=True, floor=0)
    judge.certain("job", 1)


def a_later_exclusive_holder(judge: Holders) -> None:
    judge.granted("job", 1, shared=True, floor=0)
    judge.granted("job", 2, shared=False, floor=0)
    judge.certain("job", 1)


def a_token_twice(judge: Holders) -> None:
    judge.granted("job", 1, shared=False, floor=0)
    judge.granted("another", 1, shared=False, floor=0)


def a_token_that_falls(judge: Holders) -> None:
    judge.granted("job", 7, shared=False, floor=0)
    judge.granted("another", 6, shared=False, floor=judge.highest)


@pytest.mark.parametrize(
    "wrong",
    [a_later_holder, a_later_shared_holder, a_later_exclusive_holder, a_token_twice, a_token_that_falls],
    ids=lambda wrong: wrong.__name__,
)
def test_holders_that_should_not_be_are_seen(wrong: object) -> None:
    """Broken if a ledger may grant so unseen."""
    assert callable(wrong)
    with pytest.raises(Violation):
        wrong(Holders(Counter()))


def test_holders_that_share_are_not_accused() -> None:
    """Nor those of two locks, nor two that were asked for at one time and are told in another order."""
    judge = Holders(Counter())
    judge.granted("job", 3, shared=True, floor=0)
    judge.granted("job", 2, shared=True, floor=0)
    judge.granted("another", 4, shared=False, floor=judge.highest)
    for token in (2, 3):
        judge.certain("job", token)
    judge.certain("another", 4)
    assert judge.highest == 4


def enlisted() -> Rows:
    judge = Rows()
    for gid in GIDS:
        judge.changed("enlist", (gid, CHARTER), True)
    return judge


def elect(judge: Rows, numbers: tuple[int, ...], election: int) -> None:
    for number in numbers:
        row = StateRow(BranchState.WAIT, election, 0, CHARTER)
        judge.changed("elect", (GIDS[number - 1], election, CHARTER), row)


def attempt(judge: Rows, numbers: tuple[int, ...], election: int, event: Event) -> None:
    for number in numbers:
        judge.changed("attempt", (GIDS[number - 1], election, event), True)


def an_election_twice(judge: Rows) -> None:
    elect(judge, (1, 2), 2)
    elect(judge, (1,), 2)


def an_attempt_of_a_lower_election(judge: Rows) -> None:
    elect(judge, (1, 2), 2)
    attempt(judge, (1,), 1, Event.TRY_COMMIT)


def two_attempts_in_an_election(judge: Rows) -> None:
    elect(judge, (1, 2), 2)
    attempt(judge, (1,), 2, Event.TRY_COMMIT)
    attempt(judge, (2,), 2, Event.TRY_ABORT)


def fixed_to_both(judge: Rows) -> None:
    attempt(judge, (1, 2), 1, Event.TRY_COMMIT)
    elect(judge, (2, 3), 2)
    attempt(judge, (2, 3), 2, Event.TRY_ABORT)


def buried_although_fixed(judge: Rows) -> None:
    attempt(judge, (1, 2), 1, Event.TRY_COMMIT)
    judge.changed("bury", (GIDS[2], CHARTER), True)


def buried_for_no_reason(judge: Rows) -> None:
    attempt(judge, (1,), 1, Event.TRY_COMMIT)
    judge.changed("bury", (GIDS[2], CHARTER), True)


def committed_by_a_minority_of_rows(judge: Rows) -> None:
    attempt(judge, (1,), 1, Event.TRY_COMMIT)
    judge.acts(str(TXID), "a branch ends", "commit")


def rolled_back_although_fixed(judge: Rows) -> None:
    attempt(judge, (1, 3), 1, Event.TRY_COMMIT)
    judge.acts(str(TXID), "a branch ends", "abort")


@pytest.mark.parametrize(
    "wrong",
    [
        an_election_twice,
        an_attempt_of_a_lower_election,
        two_attempts_in_an_election,
        fixed_to_both,
        buried_although_fixed,
        buried_for_no_reason,
        committed_by_a_minority_of_rows,
        rolled_back_although_fixed,
    ],
    ids=lambda wrong: wrong.__name__,
)
def test_rows_that_go_wrong_are_seen(wrong: object) -> None:
    """Broken if a termination or a coordinator may do so unseen."""
    assert callable(wrong)
    with pytest.raises(Violation):
        wrong(enlisted())


def test_rows_that_go_right_are_not_accused() -> None:
    """Broken if whatever is told counts as wrong."""
    judge = enlisted()
    attempt(judge, (1,), 1, Event.TRY_COMMIT)
    elect(judge, (2, 3), 2)
    attempt(judge, (2, 3), 2, Event.TRY_ABORT)
    for gid in GIDS:
        judge.changed("bury", (gid, CHARTER), True)
        judge.acts(str(TXID), f"{gid} ends", "abort")
    assert judge.fixed == {str(TXID): "abort"}


AGENTS = str(TXID)


def a_row_behind_a_tombstone(judge: AgentRows) -> None:
    judge.written(AGENTS, "abort", None)
    judge.written(AGENTS, "commit", None)


def a_row_of_what_was_given_up(judge: AgentRows) -> None:
    judge.acts(AGENTS, "a branch ends", "abort")
    judge.written(AGENTS, "commit", None)


def a_tombstone_in_place_of_a_row(judge: AgentRows) -> None:
    judge.written(AGENTS, "commit", None)
    judge.written(AGENTS, "abort", None)


def a_row_that_no_ledger_has(judge: AgentRows) -> None:
    judge.written(AGENTS, "commit", None)
    judge.deleted(AGENTS, None)


def committed_without_a_row(judge: AgentRows) -> None:
    judge.acts(AGENTS, "a branch ends", "commit")


def aborted_although_there_is_a_row(judge: AgentRows) -> None:
    judge.written(AGENTS, "commit", None)
    judge.acts(AGENTS, "a branch ends", "abort")


@pytest.mark.parametrize(
    "wrong",
    [
        a_row_behind_a_tombstone,
        a_row_of_what_was_given_up,
        a_tombstone_in_place_of_a_row,
        a_row_that_no_ledger_has,
        committed_without_a_row,
        aborted_although_there_is_a_row,
    ],
    ids=lambda wrong: wrong.__name__,
)
def test_agents_that_go_wrong_are_seen(wrong: object) -> None:
    """Broken if a coordinator, a recovery or an operator may do so unseen."""
    assert callable(wrong)
    with pytest.raises(Violation):
        wrong(AgentRows())


def test_a_tombstone_behind_a_row_that_was_copied_is_not_accused() -> None:
    """Broken if whatever is told counts as wrong: a recovery may come late."""
    judge = AgentRows()
    judge.written(AGENTS, "commit", None)
    judge.acts(AGENTS, "a branch ends", "commit")
    judge.deleted(AGENTS, "commit")
    judge.written(AGENTS, "abort", "commit")
    judge.acts(AGENTS, "another ends", "commit")
    assert judge.fixed == {AGENTS: "commit"}
