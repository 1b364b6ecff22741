"""What ``run`` may be given: a function of the kind that it can carry out.

A coroutine function that is called and not awaited does nothing, and so does a generator that nobody
iterates over: the transaction would commit without a word of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from undoubt.participants.errors import UsageError

T = TypeVar("T")


def check_asynchronous(function: object) -> None:
    """Before anything is begun. Raises ``UsageError`` for what cannot be awaited, as far as that can be seen;
    :func:`checked_awaitable` sees the rest."""
    if not callable(function) or _is(function, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        raise UsageError(f"run() takes a coroutine function, not {_named(function)}")


def checked_awaitable(function: object, made: Awaitable[T]) -> Awaitable[T]:
    """What the function returned, if it can be awaited. Raises ``UsageError``: nothing may commit then."""
    if not inspect.isawaitable(made):
        raise UsageError(
            f"run() awaits what its function returns, and {_named(function)} is a synchronous function: write"
            " it with async def, or use undoubt.sync"
        )
    return made


def check_synchronous(function: object) -> None:
    """Before anything is begun. Raises ``UsageError`` for what would do nothing when it is called."""
    if _is(function, inspect.iscoroutinefunction, inspect.isasyncgenfunction):
        raise UsageError(
            f"run() calls its function, and {_named(function)} is a coroutine function, which would do"
            " nothing: write it without async, or use undoubt.connect"
        )
    if not callable(function) or _is(function, inspect.isgeneratorfunction):
        raise UsageError(f"run() takes a function, not {_named(function)}")


def checked_result(function: object, result: T) -> T:
    """What the function returned, if it has done its work. Raises ``UsageError`` for what is to be awaited:
    nothing may commit then."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # else Python warns that it was never awaited
        raise UsageError(
            f"run() calls its function, and {_named(function)} returned what has to be awaited: use"
            " undoubt.connect"
        )
    return result


def _is(function: object, *tests: Callable[[Any], bool]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(type(function), "__call__", None)  # noqa: B004 - the method, of an object that has one
    return any(test(function) or test(call) for test in tests)


def _named(function: object) -> str:
    return str(getattr(function, "__qualname__", None) or repr(function)[:80])
