"""Who acts as an operator: the system user of this process, and a record of each act in the ledger.

``acting`` is a context: the act is in the ledger before its body runs, and what came of it afterwards. A
ledger that cannot be told raises before anything is done. Only a cluster with members of an older version,
which know no acts, lets the act pass: it is logged then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import msgspec

from undoubt.coordinator.errors import LedgerError, VersionHeldBack
from undoubt.coordinator.ledger.contract import Act
from undoubt.participants.ids import new_nonce

log = logging.getLogger(__name__)

DONE = "done"
RESULT_S = 5.0
"""For so long the ledger is told what came of an act that was cut off."""


def user_name(uid: int) -> str:
    """Of a system user; the number where it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def system_user() -> str:
    """``user@machine`` of this process. The environment does not change it; it only tells who became another
    user with sudo."""
    who = f"{user_name(os.geteuid())}@{socket.gethostname()}"
    sudo = os.environ.get("SUDO_USER")
    return f"{who} (sudo by {sudo})" if sudo else who


def new_act(verb: str, subject: object, note: str = "", *, result: str = "") -> Act:
    """Of this process, now."""
    return Act(new_nonce(), verb, str(subject), time.time(), system_user(), note, result)


class Records(Protocol):
    """What of a ledger this needs."""

    async def record_act(self, act: Act) -> None: ...


@dataclass(slots=True)
class CameOf:
    """What came of an act whose body raised nothing. A body that did nothing, or not all of it, says so."""

    result: str = DONE


@contextlib.asynccontextmanager
async def acting(ledger: Records, act: Act, *, needed: bool = True) -> AsyncIterator[CameOf]:
    """Record an act around its body. Raises ``LedgerError`` before the body runs; what the body raises is
    recorded as the result, else what it says of itself in what it is given. An act that is not ``needed`` to
    be recorded, since it changes nothing, is logged where that cannot be."""
    try:
        await _record(ledger, act)
    except LedgerError as error:
        if needed:
            raise
        log.warning("%s of %s by %s is not recorded: %s", act.verb, act.subject, act.who, error)
    came_of = CameOf()
    try:
        yield came_of
    except asyncio.CancelledError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESULT_S):
                await _record_result(ledger, act, "cut off")
        raise
    except Exception as error:
        await _record_result(ledger, act, f"{type(error).__name__}: {error}")
        raise
    await _record_result(ledger, act, came_of.result)


async def _record(ledger: Records, act: Act) -> None:
    try:
        await ledger.record_act(act)
    except VersionHeldBack as error:
        log.warning("%s of %s by %s is not recorded: %s", act.verb, act.subject, act.who, error)


async def _record_result(ledger: Records, act: Act, result: str) -> None:
    """That it was begun is recorded; what was done stays done."""
    try:
        await _record(ledger, msgspec.structs.replace(act, result=result))
    except LedgerError as error:
        log.warning("what came of %s of %s is not recorded (%s): %s", act.verb, act.subject, error, result)
