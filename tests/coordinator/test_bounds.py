"""What an application gives to ``transaction`` and ``run`` is judged before anything is begun."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.coordinator.stage import Stage
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.participants.contract import XactStatus
from undoubt.participants.errors import UsageError
from undoubt.participants.scripted import Script

DURATIONS: list[Any] = [0, -1, float("nan"), float("inf"), 1e300, "5", True, [5]]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage({"alpha": Script(), "beta": Script()})
    await made.coordinator.start()
    yield made
    await made.coordinator.close()


async def touched(tx: Any) -> None:
    await tx.branch("alpha")


@pytest.mark.parametrize("timeout", DURATIONS, ids=repr)
async def test_a_wrong_timeout_is_refused(stage: Stage, timeout: Any) -> None:
    """Broken if NaN is an endless timeout, or text fails deep inside of the first branch."""
    with pytest.raises(UsageError, match="timeout must be"):
        stage.coordinator.transaction(timeout=timeout)
    with pytest.raises(UsageError, match="timeout must be"):
        await stage.coordinator.run(touched, timeout=timeout)
    with pytest.raises(UsageError, match="protocol"):
        stage.coordinator.transaction(protocol=["2pc"])  # type: ignore[arg-type]


@pytest.mark.parametrize("retries", [-1, 1.5, "3", None, True], ids=repr)
async def test_a_wrong_number_of_retries_is_refused(stage: Stage, retries: Any) -> None:
    with pytest.raises(UsageError, match="retries must be"):
        await stage.coordinator.run(touched, retries=retries)


@pytest.mark.parametrize("value", [0, float("nan"), float("inf"), 1e17, "10", True], ids=repr)
def test_settings_made_in_code_are_judged_as_well(value: Any) -> None:
    with pytest.raises(UsageError, match="session_ttl_s must be"):
        CoordinatorSettings(session_ttl_s=value)


async def test_a_synchronous_function_commits_nothing(stage: Stage) -> None:
    """Broken if its transaction commits, or the caller is told of a bug in undoubt."""

    def wrong(tx: Any) -> int:
        return 1

    def generates(tx: Any) -> Any:
        yield tx

    async def generates_too(tx: Any) -> AsyncIterator[Any]:
        yield tx

    for function in (wrong, generates, generates_too, None, "touched"):
        with pytest.raises(UsageError, match=r"synchronous function|takes a coroutine function"):
            await stage.coordinator.run(function)  # type: ignore[arg-type]
    await stage.coordinator.run(lambda tx: touched(tx))  # noqa: PLW0108
    await stage.coordinator.run(functools.partial(touched))


async def test_a_function_that_returns_what_nobody_has_awaited_commits_nothing(stage: Stage) -> None:
    """Broken if a forgotten ``await`` inside the function commits a transaction without its work."""

    async def forgets(tx: Any) -> Any:
        await touched(tx)
        return touched(tx)

    async def generates(tx: Any) -> AsyncIterator[Any]:
        yield tx

    async def forgets_to_iterate(tx: Any) -> Any:
        await touched(tx)
        return generates(tx)

    def works(tx: Any) -> Iterator[Any]:
        yield tx

    async def forgets_to_iterate_over(tx: Any) -> Any:
        await touched(tx)
        return works(tx)

    class Lazy:
        def __await__(self) -> Iterator[None]:
            yield

    async def forgets_an_object(tx: Any) -> Any:
        await touched(tx)
        return Lazy()

    for function, remedy in {
        forgets: "await it",
        forgets_an_object: "await it",
        forgets_to_iterate: "iterate over it",
        forgets_to_iterate_over: "iterate over it",
    }.items():
        with pytest.raises(UsageError, match=f"{remedy} in the function"):
            await stage.coordinator.run(function)
    assert XactStatus.COMMITTED not in stage.xact_statuses()
