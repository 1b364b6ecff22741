"""The automatons of a commit and of the session keeper: every walk through their tables."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undoubt.coordinator import session
from undoubt.coordinator.errors import CoordinatorClosed, HeuristicOutcome, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.protocols import context
from undoubt.coordinator.protocols.context import (
    CERTAIN_BEFORE_THE_LEDGER,
    FINISHED,
    NOTHING_LEFT,
    OUTCOMES,
    PHASES,
    CommitContext,
    CommitEvent,
    CommitState,
    Phase,
)
from undoubt.coordinator.session import BEGINNING, OVER, TO_OPEN, KeeperEvent, KeeperState, SessionKeeper
from undoubt.coordinator.transaction import Transaction
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId
from undoubt.participants.invariant import InvariantViolation

S = TypeVar("S", bound=enum.StrEnum)
E = TypeVar("E", bound=enum.StrEnum)

TXID = TxId(1, "99b2" * 4, 1)
LEDGER_HOLDS = {
    CommitState.RECORDED: Decision.COMMIT,
    CommitState.RECORDED_SENT: Decision.COMMIT,
    CommitState.APPLIED_RECORDED: Decision.COMMIT,
    CommitState.REFUSED: Decision.ABORT,
    CommitState.ABORTING_RECORDED: Decision.ABORT,
    CommitState.LEFT: Decision.ABORT,
    CommitState.ABORTED_RECORDED: Decision.ABORT,
}
"""States in which the ledger is known to hold a decision."""


def walks(table: Mapping[tuple[S, E], S], start: S) -> Iterator[tuple[list[E], list[S]]]:
    """Every way from ``start``, the states of it as often as once: its events, and its states."""
    todo: list[tuple[list[E], list[S]]] = [([], [start])]
    while todo:
        events, states = todo.pop()
        yield events, states
        for (before, event), after in table.items():
            if before is states[-1] and after not in states:
                todo.append(([*events, event], [*states, after]))


COMMITS = list(walks(context.TRANSITIONS, CommitState.VOTING))
KEEPERS = list(walks(session.TRANSITIONS, KeeperState.NEW))


def ends(table: Mapping[tuple[S, E], S], states: type[S]) -> set[S]:
    return set(states) - {before for before, _ in table}


def test_every_state_of_a_commit_is_reached_and_every_event_moves_one() -> None:
    assert {states[-1] for _, states in COMMITS} == set(CommitState)
    assert {event for events, _ in COMMITS for event in events} == set(CommitEvent)
    assert set(PHASES) == set(CommitState)
    assert set(OUTCOMES) == set(Phase)


def test_a_commit_ends() -> None:
    """Broken if an end state can be left, or a commit can turn in a circle."""
    assert ends(context.TRANSITIONS, CommitState) == {*NOTHING_LEFT, CommitState.LEFT}
    for events, states in COMMITS:
        assert not [
            e for (at, e), after in context.TRANSITIONS.items() if at is states[-1] and after in states
        ]
        assert len(events) < len(CommitState)


def test_the_phase_only_rises() -> None:
    for before, after in ((at, after) for (at, _), after in context.TRANSITIONS.items()):
        assert PHASES[before] <= PHASES[after]


def test_what_was_told_stays_true() -> None:
    """Broken if a caller is told an outcome that another state takes back."""
    for (before, _), after in context.TRANSITIONS.items():
        if (told := OUTCOMES[PHASES[before]]) is not None:
            assert OUTCOMES[PHASES[after]] is told


def test_nothing_is_applied_that_was_not_decided() -> None:
    decided = {CommitEvent.BRANCH_COMMITTED, CommitEvent.COMMIT_FIXED, CommitEvent.COMMIT_RECORDED}
    asked = {CommitEvent.COMMIT_SENT, CommitEvent.DECIDE_SENT, CommitEvent.AGENT_SENT}
    for events, states in COMMITS:
        if PHASES[states[-1]] >= Phase.COMMITTED:
            assert decided & set(events)
            assert asked & set(events)
        if PHASES[states[-1]] is Phase.ABORTED:
            assert not decided & set(events)


def test_after_decide_only_a_recorded_abort_leads_to_a_rollback() -> None:
    """Three-phase commit aside, where a termination may fix ABORT."""
    for events, _ in COMMITS:
        asked = CommitEvent.DECIDE_SENT in events and CommitEvent.PRECOMMIT_SENT not in events
        if asked and CommitEvent.ABORT_CERTAIN in events:
            order = [CommitEvent.DECIDE_SENT, CommitEvent.ABORT_RECORDED, CommitEvent.ABORT_CERTAIN]
            assert [event for event in events if event in order] == order


def test_the_ledger_is_told_at_most_one_decision_and_hears_no_end_before_it() -> None:
    for events, states in COMMITS:
        told = [e for e in events if e in {CommitEvent.COMMIT_RECORDED, CommitEvent.ABORT_RECORDED}]
        assert len(told) <= 1
        assert bool(told) == (states[-1] in LEDGER_HOLDS)
        if states[-1] in LEDGER_HOLDS and OUTCOMES[PHASES[states[-1]]] is not None:
            assert LEDGER_HOLDS[states[-1]] is OUTCOMES[PHASES[states[-1]]]
        if states[-1] in FINISHED:
            assert states[-1] in LEDGER_HOLDS
            assert events.count(CommitEvent.CONFIRMED) == 1


def test_a_precommit_in_the_ledger_is_followed_by_a_record() -> None:
    """Broken if rows are deleted, or the transaction is over, while the ledger waits for an outcome."""
    for events, states in COMMITS:
        if CommitEvent.PRECOMMIT_SENT in events and states[-1] in ends(context.TRANSITIONS, CommitState):
            assert states[-1] in LEDGER_HOLDS


def test_what_is_certain_before_the_ledger_knows_it() -> None:
    for events, states in COMMITS:
        certain = CommitEvent.COMMIT_FIXED in events and CommitEvent.COMMIT_RECORDED not in events
        assert certain == (states[-1] in CERTAIN_BEFORE_THE_LEDGER)


@given(st.lists(st.sampled_from(CommitEvent)))
def test_a_commit_moves_as_the_table_says(events: list[CommitEvent]) -> None:
    """Broken if an event that the table does not hold changes anything, or does not raise."""

    async def play() -> None:
        left: list[Phase] = []
        commit = CommitContext(TXID, (), MemoryLedger(), 0.0, on_phase=left.append)
        for event in events:
            before, after = commit.state, context.TRANSITIONS.get((commit.state, event))
            phases = len(left)
            if after is None:
                with pytest.raises(InvariantViolation):
                    commit.move(event)
                assert (commit.state, len(left)) == (before, phases)
            else:
                commit.move(event)
                assert commit.state is after
                assert left[phases:] == ([PHASES[before]] if PHASES[before] is not PHASES[after] else [])
            assert commit.decision is OUTCOMES[PHASES[commit.state]]
            assert commit.answer_ready.done() == (commit.phase is Phase.APPLIED)

    asyncio.run(play())


@pytest.mark.parametrize("state", CommitState)
async def test_the_caller_is_told_what_the_state_says(state: CommitState) -> None:
    """Of a commit whose deadline is over, and whose task goes on."""
    told: dict[Decision | None, type[Exception] | None]
    told = {None: OutcomeUnknown, Decision.ABORT: TransactionAborted, Decision.COMMIT: None}
    host: Any = None
    tx = Transaction(host, timeout_s=1.0, protocol=Protocol.TWO_PHASE)
    tx._txid = TXID
    task: Any = asyncio.get_running_loop().create_future()
    commit = CommitContext(TXID, (), MemoryLedger(), 0.0, state=state)
    expected = told[OUTCOMES[PHASES[state]]]
    if expected is None:
        assert tx._result(commit, task).txid == TXID
    else:
        with pytest.raises(expected) as caught:
            tx._result(commit, task)
        assert not isinstance(caught.value, HeuristicOutcome)


def test_every_state_of_the_keeper_is_reached_and_every_event_moves_it() -> None:
    assert {states[-1] for _, states in KEEPERS} == set(KeeperState)
    assert {event for _, event in session.TRANSITIONS} == set(KeeperEvent)
    assert ends(session.TRANSITIONS, KeeperState) == {KeeperState.CLOSED}


def test_what_the_keepers_states_allow() -> None:
    """Broken if a transaction could begin under a lease that is gone, or once it was shut."""
    assert BEGINNING | OVER | {KeeperState.NEW, KeeperState.LOST} == set(KeeperState)
    assert not BEGINNING & OVER
    for (before, event), after in session.TRANSITIONS.items():
        assert before not in OVER or after in OVER
        if event is KeeperEvent.EXPIRED:
            assert after not in BEGINNING
        if after in BEGINNING and before not in BEGINNING:
            assert event in {KeeperEvent.OPENED, KeeperEvent.REFUSED}
        if event is KeeperEvent.WANTED and before not in {*OVER, KeeperState.NEW}:
            assert after in TO_OPEN


def test_a_session_that_is_to_be_opened_is_until_it_was_or_the_coordinator_closes() -> None:
    """Broken if what is wanted can be forgotten."""
    answers = {KeeperEvent.OPENED, KeeperEvent.REFUSED, KeeperEvent.SHUT}
    for (before, event), after in session.TRANSITIONS.items():
        if before in TO_OPEN:
            assert (after in TO_OPEN) == (event not in answers)


@given(st.lists(st.sampled_from(KeeperEvent)))
def test_a_keeper_moves_as_the_table_says(events: list[KeeperEvent]) -> None:
    keeper: Any = SessionKeeper(
        MemoryLedger(), "a", ttl_s=1.0, transactions_max=2, on_lost=lambda _: pytest.fail("none was lost")
    )
    for event in events:
        before, after = keeper.state, session.TRANSITIONS.get((keeper.state, event))
        if after is None:
            with pytest.raises(InvariantViolation):
                keeper._move(event)
        else:
            keeper._move(event)
        assert keeper.state is (after or before)


async def test_begin_obeys_the_state() -> None:
    """Broken if begin looks at anything else to see whether a transaction may begin."""
    lost: list[int] = []
    keeper: Any = SessionKeeper(MemoryLedger(), "a", ttl_s=30.0, transactions_max=9, on_lost=lost.append)
    await keeper.start()
    for state in KeeperState:
        keeper.state = state
        if state in OVER:
            with pytest.raises(CoordinatorClosed):
                await keeper.begin(0.1)
        else:
            assert (keeper._beginning(bound=False) is not None) == (state in BEGINNING)
    keeper.state = KeeperState.SHUT
    await keeper.close()
    assert not lost
