"""Writes a count and its noun, for texts that people read."""

from __future__ import annotations


def plural(count: int, one: str, many: str = "") -> str:
    """The count with ``one`` or with ``many``: ``1 branch``, ``1,200 branches``. Without ``many``, ``one``
    gets an s. Both may include a verb."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
