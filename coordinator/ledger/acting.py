"""Acts of operators: who acts, and a record of each act in the ledger.

``acting`` is a context manager: it records the act in the ledger before its body runs, and the result
afterwards. If the act cannot be recorded, it raises before the body runs. The one exception is a cluster with
a member of an older version, which cannot record acts: then the body runs, and the act is logged."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import pwd
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Protocol

import msgspec

from undoubt.coordinator.errors import LedgerError, VersionHeldBack
from undoubt.coordinator.ledger.contract import Act
from undoubt.participants.ids import new_nonce

log = logging.getLogger(__name__)

DONE = "done"
NEW_INCARNATION = "new incarnation"
"""The verb of a ledger that has found by itself that it was set back."""
RESULT_S = 5.0
"""The time limit for recording the result of an act that was cancelled."""


def user_name(uid: int) -> str:
    """The name of a system user, or the number if the user has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


_client: contextvars.ContextVar[str] = contextvars.ContextVar("undoubt acts for", default="")


@contextlib.contextmanager
def acting_for(client: str) -> Iterator[None]:
    """Acts within the block are those of ``client``, the name under which this process knows who asked."""
    token = _client.set(client)
    try:
        yield
    finally:
        _client.reset(token)


def system_user() -> str:
    """``user@machine`` of this process. The user is the effective one, whatever the environment contains;
    from the environment comes only the name of the user who ran sudo. Within :func:`acting_for` the client
    stands before it."""
    who = f"{user_name(os.geteuid())}@{socket.gethostname()}"
    if client := _client.get():
        return f"client {client} of {who}"
    sudo = os.environ.get("SUDO_USER")
    return f"{who} (sudo by {sudo})" if sudo else who


def new_act(verb: str, subject: object, note: str = "", *, result: str = "") -> Act:
    """An act of this process, at the present time."""
    return Act(new_nonce(), verb, str(subject), time.time(), system_user(), note, result)


class Records(Protocol):
    """The part of a ledger that this module uses."""

    async def record_act(self, act: Act) -> None: ...


@dataclass(slots=True)
class CameOf:
    """The result of an act whose body raised nothing. A body that did nothing, or only a part, sets
    ``result``."""

    result: str = DONE


@contextlib.asynccontextmanager
async def acting(ledger: Records, act: Act, *, needed: bool = True) -> AsyncIterator[CameOf]:
    """Record an act around its body. Raises ``LedgerError`` before the body runs if the act cannot be
    recorded. The recorded result is the exception that the body raises, otherwise the ``result`` of the
    yielded object. With ``needed`` False (an act that changes nothing) the body also runs if the act cannot
    be recorded; the act is then logged."""
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
    """Record the result. If that fails it is only logged: the act has been carried out, and its beginning is
    recorded."""
    try:
        await _record(ledger, msgspec.structs.replace(act, result=result))
    except LedgerError as error:
        log.warning("the result of %s of %s is not recorded (%s): %s", act.verb, act.subject, error, result)
