"""Models as rules over facts. A state is the set of facts that hold in it, each a bit of one integer.

A variable of a specification that has one of several values is one fact for each value, exactly one of which
holds; a set of messages is one fact for each message that was sent. An action is one rule for each choice of
its parameters: it may be taken where certain facts hold and others do not, and changes some of them. So the
next states of a state cost a few machine instructions each, and a million states fit into memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

Fact = Hashable


@dataclass(frozen=True, slots=True)
class Rule:
    """Where all of ``when`` and none of ``unless`` hold, ``drop`` ceases to hold and ``add`` begins to."""

    when: tuple[Fact, ...]
    unless: tuple[Fact, ...] = ()
    drop: tuple[Fact, ...] = ()
    add: tuple[Fact, ...] = ()


class RuleModel:
    """``conflicts``: pairs of facts that must never hold together."""

    def __init__(
        self, first: Iterable[Fact], rules: Iterable[Rule], conflicts: Iterable[tuple[Fact, Fact]]
    ) -> None:
        self._bits: dict[Fact, int] = {}
        self._first = self._mask(first)
        self._rules = [self._compile(rule) for rule in rules]
        self._conflicts = [self._mask(pair) for pair in conflicts]

    def _mask(self, facts: Iterable[Fact]) -> int:
        mask = 0
        for fact in facts:
            mask |= self._bits.setdefault(fact, 1 << len(self._bits))
        return mask

    def _compile(self, rule: Rule) -> tuple[int, int, int, int]:
        """As masks: which bits are looked at, what they must be, which are kept, which are set."""
        when = self._mask(rule.when)
        looked_at = when | self._mask(rule.unless)
        return looked_at, when, ~self._mask(rule.drop), self._mask(rule.add)

    def initial(self) -> int:
        return self._first

    def successors(self, state: int) -> list[int]:
        return [
            state & kept | added
            for looked_at, wanted, kept, added in self._rules
            if state & looked_at == wanted
        ]

    def wrong(self, state: int) -> str | None:
        for pair in self._conflicts:
            if state & pair == pair:
                return " and ".join(str(fact) for fact, bit in self._bits.items() if pair & bit)
        return None

    def facts(self, state: int) -> set[Fact]:
        return {fact for fact, bit in self._bits.items() if state & bit}

    def describe(self, state: int) -> str:
        return ", ".join(sorted(str(fact) for fact in self.facts(state)))
