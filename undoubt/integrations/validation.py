"""Judges what an application gives to an integration, when it gives it: a wrong value must not wait for the
first request or job."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from undoubt.config import Settings, load
from undoubt.coordinator.runnable import does_nothing
from undoubt.coordinator.settings import PROTOCOLS
from undoubt.participants import bounds
from undoubt.participants.bounds import OutOfBounds
from undoubt.sync import Coordinator


def options(timeout: object, protocol: object, agent: object = None) -> dict[str, Any]:
    """The options of ``coordinator.transaction``. Raises ``UsageError``, as all functions of this module."""
    if timeout is not None:
        bounds.seconds("timeout", timeout, zero=False)
    if protocol is not None:
        bounds.choice("protocol", protocol, PROTOCOLS)
    if agent is not None:
        bounds.text("agent", agent, empty=False)
        if protocol not in {None, "last"}:
            raise OutOfBounds("agent", f"is for protocol='last'; the protocol here is {protocol!r}")
    return {"timeout": timeout, "protocol": protocol, "agent": agent}


def source(value: object) -> None:
    """A source of ``undoubt.connect``. A file is not read before a coordinator is opened."""
    if isinstance(value, Mapping):
        load(value)
    elif isinstance(value, str):
        bounds.path("source", value)
    elif not isinstance(value, PathLike | Settings | None):
        raise OutOfBounds("source", "must be a path, a mapping, ready settings or None")


def plain_function(name: str, value: object, what: str) -> None:
    """A function that has done its work when it returns: nothing awaits what it returns."""
    bounds.having(name, value, what)
    if does_nothing(value):
        raise OutOfBounds(name, f"must be {what} that is no coroutine function and no generator")


def of_requests(sessions: object, commits: object, answer: object) -> None:
    """What an application gives to the work of its requests."""
    if sessions is not None:
        plain_function("sessions", sessions, "a maker of sessions")
    plain_function("commits", commits, "a function of a status")
    plain_function("answer", answer, "a function of an error")


def instance(name: str, value: object, *kinds: type[Any]) -> None:
    """An object of one of ``kinds``."""
    if not isinstance(value, kinds):
        wanted = " or ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
        raise OutOfBounds(name, f"must be of type {wanted}, not {type(value).__name__}")


def synchronous(value: object) -> None:
    """A coordinator for threads."""
    if not isinstance(value, Coordinator):
        raise OutOfBounds(
            "coordinator", f"must be one of undoubt.sync.connect, not of type {type(value).__name__}"
        )
