"""Checks that ``run``, or another call or decorator, was given a function of the kind that it can run.

A coroutine function that is called and not awaited does nothing, and neither does a generator that is not
iterated over: the transaction would commit without having done any work, and without an error. ``caller``
names the call or decorator in messages.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from undoubt.participants.errors import UsageError

T = TypeVar("T")


def check_asynchronous(function: object) -> None:
    """Check ``function`` before anything is begun. Raises ``UsageError`` if its result certainly cannot be
    awaited; :func:`checked_awaitable` finds the other cases."""
    if not callable(function) or _is(function, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        raise UsageError(f"run() takes a coroutine function, not {_named(function)}")


async def checked_awaitable(function: object, made: Awaitable[T]) -> T:
    """Await ``made``, the result of ``function``, and return its value. Raises ``UsageError`` if it cannot be
    awaited, or its value is a coroutine or a generator, which has done nothing yet: the transaction must not
    commit then."""
    if not inspect.isawaitable(made):
        raise UsageError(
            f"run() awaits what its function returns, and {_named(function)} is a synchronous function: write"
            " it with async def, or use undoubt.sync"
        )
    value = await made
    if asyncio.isfuture(value):  # its work has begun already
        return value
    if (kind := _lazy(value)) is not None:
        raise UsageError(
            f"run() awaits what its function returns, and {_named(function)} returned {kind}, of which"
            f" nothing has run: {_REMEDY[kind]} in the function"
        )
    return value


def check_synchronous(function: object, caller: str = "run()") -> None:
    """Check ``function`` before anything is begun. Raises ``UsageError`` if a call of it would do nothing."""
    if _is(function, inspect.iscoroutinefunction, inspect.isasyncgenfunction):
        raise UsageError(
            f"{caller} calls its function, and {_named(function)} is a coroutine function, which would do"
            " nothing: write it without async, or use undoubt.connect"
        )
    if not callable(function) or _is(function, inspect.isgeneratorfunction):
        raise UsageError(f"{caller} takes a function, not {_named(function)}")


def checked_result(function: object, result: T, caller: str = "run()") -> T:
    """Return ``result``, the result of ``function``, if the function has done its work. Raises ``UsageError``
    if the result has to be awaited or iterated over: the transaction must not commit then."""
    match _lazy(result):
        case None:
            return result
        case "a generator":
            raise UsageError(
                f"{caller} calls its function, and {_named(function)} returned a generator, of which nothing"
                " has run: iterate over it in the function"
            )
        case kind:
            raise UsageError(
                f"{caller} calls its function, and {_named(function)} returned {kind}, which has to be"
                " awaited: use undoubt.connect"
            )


def does_nothing(function: object) -> bool:
    """Whether a call of ``function`` only makes a coroutine or a generator."""
    return _is(function, inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)


_REMEDY = {
    "a coroutine": "await it",
    "an awaitable": "await it",
    "a generator": "iterate over it",
    "an asynchronous generator": "iterate over it",
}
"""What to do with each kind of result that has done nothing yet."""


def _lazy(value: object) -> str | None:
    """The kind of ``value`` if it is a result of which nothing has run, or not all."""
    if inspect.iscoroutine(value):
        value.close()  # otherwise Python warns that the coroutine was never awaited
        return "a coroutine"
    if inspect.isasyncgen(value):
        return "an asynchronous generator"
    if inspect.isgenerator(value):
        return "a generator"
    return "an awaitable" if inspect.isawaitable(value) else None


def _is(function: object, *tests: Callable[[Any], bool]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(type(function), "__call__", None)  # noqa: B004 - the method, of an object that has one
    return any(test(function) or test(call) for test in tests)


def _named(function: object) -> str:
    return str(getattr(function, "__qualname__", None) or repr(function)[:80])
