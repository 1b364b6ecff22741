"""Replaces what a module of the product has imported, in processes that have no ``monkeypatch``."""

from __future__ import annotations

from types import ModuleType


def put(module: ModuleType, name: str, stand_in: object) -> None:
    """Let ``name`` of ``module`` be ``stand_in``, for the whole of this process. Raises ``AttributeError`` if
    the module has no such name: it was renamed."""
    getattr(module, name)
    setattr(module, name, stand_in)
