"""Sets of integers that are mostly runs, kept as runs."""

from __future__ import annotations

from bisect import bisect_right


class Ranges:
    """A set of positive integers as sorted, disjoint, non-adjacent closed intervals.

    Invariant: ``starts`` and ``ends`` have one length, ``starts[i] <= ends[i] < starts[i + 1] - 1``.
    """

    __slots__ = ("ends", "starts")

    def __init__(self, pairs: list[tuple[int, int]] | None = None) -> None:
        self.starts = [start for start, _ in pairs or []]
        self.ends = [end for _, end in pairs or []]

    def __contains__(self, number: int) -> bool:
        position = bisect_right(self.starts, number) - 1
        return position >= 0 and number <= self.ends[position]

    def __len__(self) -> int:
        return sum(end - start + 1 for start, end in zip(self.starts, self.ends, strict=True))

    def pairs(self) -> list[tuple[int, int]]:
        return list(zip(self.starts, self.ends, strict=True))

    def add(self, number: int) -> None:
        """Add one number; amortised constant time at the upper end."""
        position = bisect_right(self.starts, number) - 1
        if position >= 0 and number <= self.ends[position]:
            return
        joins_left = position >= 0 and self.ends[position] == number - 1
        joins_right = position + 1 < len(self.starts) and self.starts[position + 1] == number + 1
        if joins_left and joins_right:
            self.ends[position] = self.ends[position + 1]
            del self.starts[position + 1], self.ends[position + 1]
        elif joins_left:
            self.ends[position] = number
        elif joins_right:
            self.starts[position + 1] = number
        else:
            self.starts.insert(position + 1, number)
            self.ends.insert(position + 1, number)
