"""Checks that ``run`` was given a function of the kind that it can run.

A coroutine function that is called and not awaited does nothing, and neither does a generator that is not
iterated over: the transaction would commit without having done any work, and without an error.
"""

from __future__ import annotations

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
    awaited, or its value is a coroutine or an asynchronous generator, which has done nothing yet: the
    transaction must not commit then."""
    if not inspect.isawaitable(made):
        raise UsageError(
            f"run() awaits what its function returns, and {_named(function)} is a synchronous function: write"
            " it with async def, or use undoubt.sync"
        )
    value = await made
    if _is_unawaited(value):
        raise UsageError(
            f"run() awaits what its function returns, and {_named(function)} returned another coroutine,"
            " which would do nothing: await it in the function"
        )
    return value


def check_synchronous(function: object) -> None:
    """Check ``function`` before anything is begun. Raises ``UsageError`` if a call of it would do nothing."""
    if _is(function, inspect.iscoroutinefunction, inspect.isasyncgenfunction):
        raise UsageError(
            f"run() calls its function, and {_named(function)} is a coroutine function, which would do"
            " nothing: write it without async, or use undoubt.connect"
        )
    if not callable(function) or _is(function, inspect.isgeneratorfunction):
        raise UsageError(f"run() takes a function, not {_named(function)}")


def checked_result(function: object, result: T) -> T:
    """Return ``result``, the result of ``function``, if the function has done its work. Raises ``UsageError``
    if the result has to be awaited: the transaction must not commit then."""
    if _is_unawaited(result) or inspect.isawaitable(result):
        raise UsageError(
            f"run() calls its function, and {_named(function)} returned what has to be awaited: use"
            " undoubt.connect"
        )
    return result


def _is_unawaited(value: object) -> bool:
    """Whether ``value`` is a coroutine or an asynchronous generator: nothing of it has run."""
    if inspect.iscoroutine(value):
        value.close()  # otherwise Python warns that the coroutine was never awaited
        return True
    return inspect.isasyncgen(value)


def _is(function: object, *tests: Callable[[Any], bool]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(type(function), "__call__", None)  # noqa: B004 - the method, of an object that has one
    return any(test(function) or test(call) for test in tests)


def _named(function: object) -> str:
    return str(getattr(function, "__qualname__", None) or repr(function)[:80])
