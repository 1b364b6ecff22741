"""Delivers to a function of the application: its return acknowledges the message, an exception does not."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from undoubt.participants.bounds import OutOfBounds, having
from undoubt.participants.errors import UsageError
from undoubt.participants.outbox import Message


class FunctionSink:
    """Calls ``function`` with each message: a coroutine function in the event loop, any other one in a
    thread. A call in a thread goes on after its timeout, beside the next attempt. A function that returns a
    generator has delivered nothing, and raises ``UsageError``."""

    def __init__(self, function: Callable[[Message], object]) -> None:
        having("function", function, "a function of a message")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise OutOfBounds("function", "must do its work when it is called, and is a generator function")
        self._function = function
        self._awaits = inspect.iscoroutinefunction(function)

    @classmethod
    def named(cls, name: str) -> FunctionSink:
        """The sink of ``module:function``; the current folder is searched first. Raises ``UsageError``."""
        module, separator, attribute = name.partition(":")
        if not separator or not module or not attribute:
            raise OutOfBounds("--to", f"is no URL, nor module:function: {name!r}")
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        try:
            found: object = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise OutOfBounds("--to", f"names no function: {error}") from error
        if not callable(found):
            raise OutOfBounds("--to", f"names what cannot be called: {name!r}")
        return cls(found)

    async def deliver(self, message: Message) -> None:
        if self._awaits:
            answer = self._function(message)
        else:
            answer = await asyncio.to_thread(self._function, message)
        if isinstance(answer, Awaitable):
            answer = await answer
        if inspect.isgenerator(answer) or inspect.isasyncgen(answer):
            raise UsageError("the function of messages returned a generator, of which nothing has run")

    async def close(self) -> None:
        """Nothing is open."""
