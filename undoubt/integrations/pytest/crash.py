"""Runs a function in a process of its own, which SIGKILL ends at a named step of a commit.

The process is a fork of the test's: the function may be anything, also one that is defined in the test. Every
coordinator that it opens, by ``undoubt.connect`` or ``undoubt.sync.connect``, is watched."""

from __future__ import annotations

import asyncio
import enum
import inspect
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.protocols.steps import STEPS, Observer, reach
from undoubt.participants.bounds import count, having, seconds
from undoubt.participants.errors import UsageError

CRASH_S = 60.0
"""How long the function may take."""
_NAMES = sorted({str(step) for steps in STEPS.values() for step in steps})


class NotReached(AssertionError):
    """The function has ended, or its time was over, before the step."""


def crash_at(
    step: str,
    function: Callable[..., Any],
    *arguments: Any,
    nth: int = 1,
    timeout: float = CRASH_S,
) -> None:
    """Call ``function(*arguments)`` in a process that dies when a commit reaches ``step`` for the ``nth``
    time. A coroutine that it returns is run by ``asyncio.run``. Returns once the process is dead.

    Raises ``UsageError`` for a step that no protocol has, and ``NotReached``, with the function's error if it
    raised one, if the process did not die there."""
    if step not in _NAMES:
        raise UsageError(f"no commit has the step {step!r}; the steps are {', '.join(_NAMES)}")
    having("function", function, "a function, which is called in another process")
    count("nth", nth, least=1)
    seconds("timeout", timeout, zero=False)
    told, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of forks beside threads: the child uses none of them
        pid = os.fork()
    if pid == 0:
        os.close(told)
        _child(step, nth, function, arguments, tell)
    os.close(tell)
    try:
        words = _read(told, timeout)
    finally:
        os.close(told)
        os.kill(pid, signal.SIGKILL)  # it is dead already, or has to be: its parent waits for it
        _, status = os.waitpid(pid, 0)
    if words is None:
        raise NotReached(f"the step {step!r} was not reached within {timeout:g} s")
    if words:
        raise NotReached(f"the step {step!r} was not reached (nth={nth}): {words.decode()}")
    if not os.WIFSIGNALED(status):
        raise NotReached(f"the process ended with status {status} before the step {step!r}")


def _read(told: int, timeout_s: float) -> bytes | None:
    """What the child has said until its end; None if it did not end in time."""
    words = b""
    while True:
        readable, _, _ = select.select([told], [], [], timeout_s)
        if not readable:
            return None
        if not (part := os.read(told, 65536)):
            return words
        words += part


def _child(
    step: str, nth: int, function: Callable[..., Any], arguments: tuple[Any, ...], tell: int
) -> NoReturn:
    """Never returns into the test's stack."""
    words = "the function has returned"
    try:
        _watch(step, nth)
        made = function(*arguments)
        if inspect.iscoroutine(made):
            asyncio.run(made)
    except BaseException:  # noqa: BLE001 - the parent shows it
        words = traceback.format_exc()
    os.write(tell, words.encode()[-60_000:])
    os._exit(1)


def _watch(step: str, nth: int) -> None:
    """Watch every coordinator that this process opens from now on."""
    left = nth

    def dies(reached: enum.StrEnum, _: str) -> None:
        nonlocal left
        if str(reached) == step:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    class Watched(Coordinator):
        def __init__(self, *arguments: Any, observe: Observer | None = None, **options: Any) -> None:
            async def both(reached: enum.StrEnum, subject: str) -> None:
                dies(reached, subject)
                await reach(observe, reached, subject)

            super().__init__(*arguments, observe=both, **options)

    sys.modules["undoubt.connect"].Coordinator = Watched  # type: ignore[attr-defined]
