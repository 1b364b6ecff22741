"""Moves a ledger from one place to another, in steps that can be repeated.

======  =====================================================  ===========  =================================
step    what it does                                           undone by    what a crash after it leaves
======  =====================================================  ===========  =================================
seal    the old place records and answers nothing any more     ``--undo``   no place answers
write   the new place gets the image, and does not answer yet  ``--undo``   the same
verify  both places are read again, and compared               ``--undo``   the same
leave   the old place is *moved*: this is the moment that      nothing      the same
        counts
enter   the new place answers                                  nothing      the move is done
======  =====================================================  ===========  =================================

A repetition finds the mark at the old place, and goes on from there. Marks change by compare and set, so that
an undoing and a repetition at the same time, or two repetitions, leave one place that answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec

from undoubt.coordinator.errors import LedgerLocked, LedgerMissing, LedgerMoved, MoveRefused
from undoubt.coordinator.ledger import urls
from undoubt.coordinator.ledger.acting import DONE, new_act
from undoubt.coordinator.ledger.contract import SessionState
from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase, MoveStatus, lives
from undoubt.coordinator.ledger.move_rules import occupied, sessions_open
from undoubt.coordinator.ledger.moving.image import ImageCounts, LedgerImage, entering
from undoubt.coordinator.ledger.moving.place import LedgerPlace
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.bounds import seconds
from undoubt.participants.ids import new_nonce

LOOK_S = 0.1
"""The pause between two looks whether sessions are still open."""

Prepared = Callable[[str], Awaitable[Sequence[str]]]
"""The prepared branches of a ledger, by its id, that only the old place can end."""
Observed = Callable[[str], None]
"""Called with the name of each step before the step is taken."""


class MovedLedger(msgspec.Struct, frozen=True):
    """What was moved. ``counts``, ``digest`` and ``incarnation`` are None if a repetition had nothing left to
    copy."""

    move: str
    ledger_id: str
    source: str
    target: str
    counts: ImageCounts | None
    digest: str | None
    incarnation: int | None
    details_left: int
    """The finished transactions whose details the new place does not keep; the decisions are kept."""
    repeated: bool
    """Whether an earlier attempt was continued."""


class PlannedMove(msgspec.Struct, frozen=True):
    """What would be moved. ``open_sessions`` would have to end first. The numbers are None if the ledger is
    sealed already: the move would be ``repeated``."""

    ledger_id: str
    source: str
    target: str
    repeated: bool
    open_sessions: tuple[str, ...] = ()
    sessions: int | None = None
    unfinished: int | None = None
    decisions: int | None = None
    heuristics_open: int | None = None


async def nothing_prepared(_: str) -> Sequence[str]:
    return ()


async def move(
    settings: LedgerSettings,
    to: str,
    *,
    wait_s: float = 0.0,
    note: str = "",
    prepared: Prepared = nothing_prepared,
    observe: Observed = lambda _: None,
) -> MovedLedger:
    """Move the ledger of ``settings`` to the URL ``to``, or complete an earlier attempt. Open sessions are
    waited for up to ``wait_s`` seconds. Raises ``MoveRefused`` and other ``LedgerError``; then the command
    may be repeated."""
    wait_s = seconds("wait_s", wait_s)
    async with _places(settings, to) as (source, target):
        found = await _found(settings, source, wait_s)
        mark, repeated = found.mark, True
        if mark is None or lives(mark):
            repeated = False
            await _look_before(settings, found.ledger_id, source, target, wait_s, prepared)
            mark = MoveMark(new_nonce(), target.url, time.time(), MovePhase.SEALED)
            observe("seal")
            await source.seal(mark)
        elif mark.phase is MovePhase.ARRIVING or mark.place != target.url:
            raise LedgerMoved(f"{source.url}: move {mark.id} is {mark.phase}, to or from {mark.place}")
        moved = MovedLedger(
            mark.id, found.ledger_id, source.url, target.url, None, None, None, 0, repeated=repeated
        )
        if mark.phase is MovePhase.SEALED:
            moved = await _copied(moved, mark, source, target, note, observe)
            observe("leave")
            await source.settle(mark.id, MovePhase.MOVED)
        observe("enter")
        await target.settle(mark.id, MovePhase.ARRIVED)
        return moved


async def _look_before(  # noqa: PLR0917 - of one caller
    settings: LedgerSettings,
    ledger_id: str,
    source: LedgerPlace,
    target: LedgerPlace,
    wait_s: float,
    prepared: Prepared,
) -> None:
    """Everything that can be found out before the seal, which stops the work. Raises ``MoveRefused``."""
    if source.url == target.url:
        raise MoveRefused(f"the ledger is at {source.url} already")
    there = await target.look()
    if there is not None and not there.takes(ledger_id):
        raise occupied(there.ledger_id)
    await _wait_for_sessions(settings, wait_s)
    if left := await prepared(ledger_id):
        listed = ", ".join(left[:5])
        raise MoveRefused(
            "branches of Paxos Commit are prepared, and only their acceptors, which are nodes of the cluster,"
            f" can decide them: {listed}. End them first: undoubt recover --once. Nothing was changed"
        )


async def _wait_for_sessions(settings: LedgerSettings, wait_s: float) -> None:
    """Wait until no session is open. As long as the ledger is open here, sessions of dead processes
    expire."""
    ledger = await urls.open_ledger(settings)
    try:
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        while open_ := [each for each in await ledger.sessions() if each.state is SessionState.OPEN]:
            if loop.time() >= end:
                raise sessions_open([f"{each.id} ({each.name})" for each in open_])
            await asyncio.sleep(LOOK_S)
    finally:
        await ledger.close()


async def _copied(  # noqa: PLR0917 - of one caller
    moved: MovedLedger, mark: MoveMark, source: LedgerPlace, target: LedgerPlace, note: str, observe: Observed
) -> MovedLedger:
    """Copy the sealed ledger to the new place, and compare. Raises ``MoveRefused`` if the copies differ."""
    image = await source.read()
    subject = f"from {source.url} to {target.url}"
    act = msgspec.structs.replace(new_act("ledger move", subject, note, result=DONE), id=mark.id)
    arriving = MoveMark(mark.id, source.url, mark.at, MovePhase.ARRIVING)
    expected = target.fitted(entering(image, arriving, act.clipped()))
    observe("write")
    await target.write(expected)
    observe("verify")
    written = target.fitted(await target.read())
    again = await source.read()
    if written.digest != expected.digest or again.digest != image.digest:
        raise MoveRefused(
            f"the copy at {target.url} differs from the ledger: {_difference(expected, written)}. The ledger"
            " stays sealed at the old place: repeat the command, or `undoubt ledger move --undo`"
        )
    return msgspec.structs.replace(
        moved,
        counts=written.counts,
        digest=written.digest,
        incarnation=written.state.incarnation,
        details_left=len(image.finished) - len(expected.finished),
    )


def _difference(expected: LedgerImage, written: LedgerImage) -> str:
    """Where two images differ, for operators."""
    one, other = msgspec.to_builtins(expected.counts), msgspec.to_builtins(written.counts)
    counts = [f"{key} {one[key]} and {other[key]}" for key in one if one[key] != other[key]]
    return ", ".join(counts) or "the numbers of records are equal, and their content is not"


async def plan(settings: LedgerSettings, to: str, *, wait_s: float = 0.0) -> PlannedMove:
    """What :func:`move` would do. Changes nothing. Raises ``MoveRefused`` if it would be refused now, except
    because of open sessions."""
    async with _places(settings, to) as (source, target):
        found = await _found(settings, source, wait_s)
        if found.mark is not None and not lives(found.mark):
            return PlannedMove(found.ledger_id, source.url, target.url, repeated=True)
        there = await target.look()
        if there is not None and not there.takes(found.ledger_id):
            raise occupied(there.ledger_id)
        ledger = await urls.open_ledger(settings)
        try:
            info, sessions = await ledger.info(), await ledger.sessions()
        finally:
            await ledger.close()
        return PlannedMove(
            found.ledger_id,
            source.url,
            target.url,
            False,
            tuple(f"{each.id} ({each.name})" for each in sessions if each.state is SessionState.OPEN),
            info.sessions_kept,
            info.unfinished,
            info.decisions_kept,
            info.heuristics_open,
        )


async def undo(settings: LedgerSettings) -> MoveMark:
    """Give a move up that is not complete: the ledger of ``settings`` lives on at its old place. Raises
    ``MoveRefused`` if there is no such move, or it is too late."""
    source = place_of(settings)
    try:
        mark = (await _there(source)).mark
        if mark is None or lives(mark):
            raise MoveRefused(f"no move of the ledger at {source.url} is under way")
        if mark.phase is not MovePhase.SEALED:
            raise MoveRefused(
                f"move {mark.id} of the ledger at {source.url} is {mark.phase}: it cannot be undone any more."
                f" Repeat `undoubt ledger move --to {mark.place}` to complete it; then it can be moved back"
            )
        await source.settle(mark.id, None)
        return mark
    finally:
        await source.close()


async def _found(settings: LedgerSettings, source: LedgerPlace, wait_s: float) -> MoveStatus:
    """What is at the old place. If a SQLite ledger is open because of sessions, they are waited for, and
    named."""
    try:
        return await _there(source)
    except LedgerLocked:
        await _wait_for_sessions(settings, wait_s)
        return await _there(source)


async def _there(source: LedgerPlace) -> MoveStatus:
    if (found := await source.look()) is None:
        raise LedgerMissing(f"no ledger at {source.url}")
    return found


@asynccontextmanager
async def _places(settings: LedgerSettings, to: str) -> AsyncIterator[tuple[LedgerPlace, LedgerPlace]]:
    source = place_of(settings)
    try:
        target = place_of(msgspec.structs.replace(settings, url=to))
        try:
            yield source, target
        finally:
            await target.close()
    finally:
        await source.close()


def place_of(settings: LedgerSettings) -> LedgerPlace:
    """The place that a URL names. Raises ``LedgerMisconfigured``."""
    match urls.backend_of(settings.url):
        case urls.SQLITE:
            from undoubt.coordinator.ledger.moving.sqlite import SqlitePlace  # noqa: PLC0415 - only where named

            return SqlitePlace(settings)
        case urls.POSTGRES:
            from undoubt.coordinator.ledger.moving.postgres import PostgresPlace  # noqa: PLC0415 - as above

            return PostgresPlace(settings)
        case urls.RAFT:
            from undoubt.coordinator.ledger.moving.cluster import ClusterPlace  # noqa: PLC0415 - as above

            return ClusterPlace(settings)
        case _:
            try:
                from undoubt.coordinator.ledger.moving.etcd import EtcdPlace  # noqa: PLC0415 - needs an extra
            except ModuleNotFoundError as error:
                raise urls.needs_extra(error) from error
            return EtcdPlace(settings)
