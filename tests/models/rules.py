"""Models as rules over facts. A state is the set of facts that hold in it, each a bit of one integer.

A variable of a specification that has one of several values is one fact for each value, exactly one of which
holds; a set of messages is one fact for each message that was sent. An action is one rule for each choice of
its parameters: it may be taken where certain facts hold and others do not, and changes some of them. So the
next states of a state cost a few machine instructions each, and a million states fit into memory.
"""

from __future__ import annotations

from collections import Counter
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


_Masks = tuple[int, int, int, int]


class RuleModel:
    """``conflicts``: pairs of facts that must never hold together."""

    def __init__(
        self, first: Iterable[Fact], rules: Iterable[Rule], conflicts: Iterable[tuple[Fact, Fact]]
    ) -> None:
        self._bits: dict[Fact, int] = {}
        self._first = self._mask(first)
        self._rules = self._grouped(rules)
        self._conflicts = [self._mask(pair) for pair in conflicts]

    def _mask(self, facts: Iterable[Fact]) -> int:
        mask = 0
        for fact in facts:
            mask |= self._bits.setdefault(fact, 1 << len(self._bits))
        return mask

    def _compile(self, rule: Rule) -> _Masks:
        """Which bits are looked at, what they must be, which are kept, which are set."""
        when = self._mask(rule.when)
        looked_at = when | self._mask(rule.unless)
        return looked_at, when, ~self._mask(rule.drop), self._mask(rule.add)

    def _grouped(self, rules: Iterable[Rule]) -> list[tuple[int, list[_Masks]]]:
        """The rules by one fact that each needs, the one that most others need too: where it does not hold,
        none of them is looked at."""
        known = list(rules)
        needed = Counter(fact for rule in known for fact in rule.when)
        groups: dict[int, list[_Masks]] = {}
        for rule in known:
            most = max(rule.when, key=lambda fact: needed[fact], default=None)
            groups.setdefault(self._mask(rule.when and (most,)), []).append(self._compile(rule))
        return list(groups.items())

    def initial(self) -> int:
        return self._first

    def successors(self, state: int) -> list[int]:
        following: list[int] = []
        for needed, rules in self._rules:
            if state & needed == needed:
                following += [
                    state & kept | added
                    for looked_at, wanted, kept, added in rules
                    if state & looked_at == wanted
                ]
        return following

    def wrong(self, state: int) -> str | None:
        for pair in self._conflicts:
            if state & pair == pair:
                return " and ".join(str(fact) for fact, bit in self._bits.items() if pair & bit)
        return None

    def facts(self, state: int) -> set[Fact]:
        return {fact for fact, bit in self._bits.items() if state & bit}

    def describe(self, state: int) -> str:
        return ", ".join(sorted(str(fact) for fact in self.facts(state)))
