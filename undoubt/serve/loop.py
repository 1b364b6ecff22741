"""The event loop of a process that is ours alone."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import Callable


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """For ``asyncio.Runner``: uvloop's where it is installed. One decision at a time takes half of the time
    with it."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory
