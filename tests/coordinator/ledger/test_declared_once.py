"""What the contract, the messages and the ledgers say of one call is the same."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from undoubt.coordinator.ledger.calls import ALL_CALLS, AnyLedgerCall, CallingLedger
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.ledger.ledger_call import carried
from undoubt.coordinator.ledger.state_machine_ledger import StateMachineLedger
from undoubt.coordinator.rpc.calls import kinds

CALLS: dict[str, type[Any]] = {kind.__name__: kind for kind in kinds(ALL_CALLS)}
OTHER_NAMES = {"outcomes": "VerdictsCall", "contended_locks": "LocksCall"}
"""The calls whose name is not the method's. ``outcomes`` got a second message with the tags of gids;
contended locks are found among the pages of all locks."""
DRAWN = {"open_session": {"nonce", "bind", "request"}, "forget_heuristic": {"request"}}
"""Fields that :class:`CallingLedger` fills in."""
LOCAL = {"contended_locks": {"after", "limit", "only"}}
METHODS = sorted(
    name for name, method in inspect.getmembers(Ledger, inspect.iscoroutinefunction) if name != "close"
)


def call_of(name: str) -> type[AnyLedgerCall]:
    return CALLS[OTHER_NAMES.get(name, "".join(map(str.capitalize, name.split("_"))) + "Call")]


def parameters(method: object) -> dict[str, object]:
    """Names and defaults."""
    assert callable(method)
    found = inspect.signature(method).parameters.values()
    return {each.name: each.default for each in found if each.name != "self"}


@pytest.mark.parametrize("name", METHODS)
def test_fields_are_parameters(name: str) -> None:
    """Broken if a message loses an argument of the contract, or has one that no caller can give."""
    call = call_of(name)
    fields = set(call.__struct_fields__) - DRAWN.get(name, set()) - LOCAL.get(name, set())
    assert fields == set(parameters(getattr(Ledger, name)))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("ledger", [CallingLedger, StateMachineLedger])
def test_signatures_are_the_contracts(name: str, ledger: type) -> None:
    """Broken if a ledger calls an argument, or its default, something else than the contract does: a caller
    that works with one ledger fails with another."""
    method = getattr(ledger, name)
    if method.__qualname__ != carried(call_of(name)).__qualname__:
        declared, given = parameters(getattr(Ledger, name)), parameters(method)
        assert {each: given[each] for each in declared} == declared
        assert all(given[each] is not inspect.Parameter.empty for each in given.keys() - declared)


def test_each_message_is_a_call() -> None:
    """Broken if a message stays that no method of the contract sends."""
    used = {call_of(name).__name__ for name in METHODS}
    # Old: to a cluster with a member of version 0.1.0. Voters: to bind a session. A file: of the owner.
    assert set(CALLS) - used == {"OutcomesCall", "VotersCall", "BackupFileCall"}
