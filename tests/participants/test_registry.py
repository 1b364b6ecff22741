"""Names of participants, those of before among them."""

from __future__ import annotations

import pytest

from undoubt.participants.errors import UsageError
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import ScriptedParticipant


def named(name: str, *before: str) -> ScriptedParticipant:
    participant = ScriptedParticipant(name)
    participant.names = frozenset({name, *before})
    return participant


def test_a_former_name_finds_its_participant() -> None:
    """Broken if a branch that was begun under the old name is nobody's any more."""
    registry = Registry()
    sales = named("sales", "orders")
    registry.add(sales)
    assert registry.find("orders") is sales
    assert registry.find("sales") is sales
    assert registry.find("stock") is None


@pytest.mark.parametrize("other", [named("orders"), named("stock", "orders"), named("stock", "sales")])
def test_no_name_is_that_of_two(other: ScriptedParticipant) -> None:
    """Broken if two databases both say what became of one branch."""
    registry = Registry()
    registry.add(named("sales", "orders"))
    with pytest.raises(UsageError, match="would belong to both"):
        registry.add(other)
