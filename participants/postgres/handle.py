"""What a branch is given: the application's side of its session, and the participant around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from participants.postgres.one_phase import OnePhase
from participants.postgres.pool import Slot
from participants.postgres.settle import Settler


class Handle(Protocol):
    """The application's side of a branch: the driver's connection in a wrapper."""

    undoubt_used: bool
    undoubt_wrote: bool
    undoubt_reusable: bool

    @property
    def undoubt_busy(self) -> bool: ...

    def undoubt_end(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a branch needs of its participant."""

    name: str
    settler: Settler
    one_phase: OnePhase
    give_back: Callable[[Slot[Any]], None]
    statement_timeout_s: float
