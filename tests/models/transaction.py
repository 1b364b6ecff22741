"""TCommit and TwoPhase: what atomic commit is, and two-phase commit, as Gray and Lamport specify them.

A resource manager (``rm``) is working, prepared, committed or aborted. In both of them, and in Paxos Commit,
the one thing that must hold (TCConsistent) is that none is committed while another is aborted.
"""

from __future__ import annotations

from itertools import product

from tests.models.rules import Fact, Rule, RuleModel

RM_STATES = ("working", "prepared", "committed", "aborted")
COMMIT, ABORT = ("sent", "commit"), ("sent", "abort")


def rm(number: int, state: str) -> Fact:
    """``rmState[number] = state``."""
    return ("rm", number, state)


def conflicts(rms: int) -> list[tuple[Fact, Fact]]:
    """Every breach of TCConsistent. (One resource manager can break it alone only by being in two states.)"""
    return [(rm(a, "committed"), rm(b, "aborted")) for a, b in product(range(rms), repeat=2)]


def becomes(number: int, state: str) -> dict[str, tuple[Fact, ...]]:
    """Drop and add, whatever the state was."""
    return {"drop": tuple(rm(number, each) for each in RM_STATES), "add": (rm(number, state),)}


def tcommit(rms: int) -> RuleModel:
    """TCommit: nobody says how they know of each other; only what may happen."""
    everybody = range(rms)
    rules = []
    for one in everybody:
        rules.append(Rule((rm(one, "working"),), **becomes(one, "prepared")))
        # canCommit: all are prepared or committed.
        ready = tuple(rm(each, state) for each in everybody for state in ("working", "aborted"))
        rules.append(Rule((rm(one, "prepared"),), ready, **becomes(one, "committed")))
        # notCommitted: none is committed.
        committed = tuple(rm(each, "committed") for each in everybody)
        rules += [
            Rule((rm(one, state),), committed, **becomes(one, "aborted")) for state in ("working", "prepared")
        ]
    return RuleModel([rm(one, "working") for one in everybody], rules, conflicts(rms))


def two_phase(rms: int) -> RuleModel:
    """TwoPhase. Messages stay sent for ever: they may be lost (nobody looks), late, and seen twice."""
    everybody = range(rms)
    init, done, gone = ("tm", "init"), ("tm", "committed"), ("tm", "aborted")
    rules = [
        Rule((init, *(("heard", one) for one in everybody)), drop=(init,), add=(done, COMMIT)),
        Rule((init,), drop=(init,), add=(gone, ABORT)),
    ]
    for one in everybody:
        prepare = becomes(one, "prepared")
        rules += [
            Rule((init, ("sent", "prepared", one)), add=(("heard", one),)),
            Rule(
                (rm(one, "working"),), drop=prepare["drop"], add=(*prepare["add"], ("sent", "prepared", one))
            ),
            Rule((rm(one, "working"),), **becomes(one, "aborted")),
            *outcome_rules(one),
        ]
    return RuleModel([init, *(rm(one, "working") for one in everybody)], rules, conflicts(rms))


def outcome_rules(one: int) -> list[Rule]:
    """RMRcvCommitMsg and RMRcvAbortMsg: whoever is told obeys, in whatever state."""
    return [Rule((COMMIT,), **becomes(one, "committed")), Rule((ABORT,), **becomes(one, "aborted"))]
