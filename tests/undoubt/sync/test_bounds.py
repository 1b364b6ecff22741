"""The synchronous ``run`` takes functions that have done their work when they return."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.undoubt.sync.support import Stage
from tests.undoubt.sync.test_transactions import stage, stages, transfer
from undoubt.participants.contract import XactStatus
from undoubt.participants.errors import UsageError

__all__ = ["stage", "stages"]


def test_a_coroutine_function_is_refused(stage: Stage) -> None:
    """Broken if it is called, does nothing, and the transaction is said to have committed."""

    async def work(tx: Any) -> None:
        transfer(tx)

    def generates(tx: Any) -> Iterator[Any]:
        yield tx

    async def generates_too(tx: Any) -> AsyncIterator[Any]:
        yield tx

    class Callable:
        async def __call__(self, tx: Any) -> None:
            transfer(tx)

    for function in (work, functools.partial(work), Callable(), generates, generates_too):
        with pytest.raises(UsageError, match=r"run\(\)"):
            stage.coordinator.run(function)
    for timeout in (float("nan"), "5", 0):
        with pytest.raises(UsageError, match="timeout must be"):
            stage.coordinator.run(transfer, timeout=timeout)  # type: ignore[arg-type]


def test_what_is_to_be_awaited_commits_nothing(stage: Stage) -> None:
    """Broken if work that was begun beside a coroutine that nobody awaits is committed."""

    async def rest() -> None: ...

    async def more() -> AsyncIterator[int]:
        yield 1

    for unfinished in (rest, more):

        def work(tx: Any, make: Any = unfinished) -> Any:
            transfer(tx)
            return make()

        with pytest.raises(UsageError, match="has to be awaited"):
            stage.coordinator.run(work)
    assert XactStatus.COMMITTED not in stage.xact_statuses()


def test_what_is_to_be_iterated_over_commits_nothing(stage: Stage) -> None:
    """Broken if a function around a generator, which does nothing when it is called, is said to have
    committed."""

    def work(tx: Any) -> Iterator[None]:
        transfer(tx)
        yield

    @functools.wraps(transfer)
    def wrapper(tx: Any) -> Any:
        return work(tx)

    def half(tx: Any) -> Any:
        rest = work(tx)
        next(rest)
        return rest

    for function in (wrapper, half, lambda tx: work(tx)):  # noqa: PLW0108
        with pytest.raises(UsageError, match="returned a generator"):
            stage.coordinator.run(function)
    assert XactStatus.COMMITTED not in stage.xact_statuses()
    assert stage.coordinator.run(lambda tx: list(work(tx))) == [None]
