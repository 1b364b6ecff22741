"""Chooses the event loop of a process that runs no application."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import Callable


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """A loop factory for ``asyncio.Runner``: uvloop's if it is installed, else None. With uvloop, decisions
    one after another take half of the time."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory
