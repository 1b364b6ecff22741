"""A block never lies: every way into a transaction with every way out of it, on real databases.

``silent``: a program went on as if its transaction had committed, and it has not. ``hung``: it did not end,
or its locks stayed. ``wrong_task_cancelled``: ``CancelledError``, or a request to cancel, reached a task that
nobody but undoubt has cancelled, outside of the block. ``failures`` lists these, and whatever else was told
otherwise than it was. ``control`` is what is ``silent`` and who was wrongly cancelled with the bugs planted.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

from tests.prove.blocks_cases import INTERRUPTED, Case, cases, play_case
from tests.prove.blocks_stage import CASE_S, NAMES, AppError, Ended, Play, Stage
from tests.prove.blocks_threads import ThreadCase, play_threads, thread_cases
from tests.prove.control import control
from undoubt import TransactionAborted

AT_ONCE = 8
MUTANTS = ("block-ends-silently", "block-cancels-whoever-entered")
CONTROL = ("--only", "asyncpg: block", "asyncpg: run", "asyncpg: stack", "--no-control")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="*", default=[""], help="only cases whose name contains one of these")
    parser.add_argument("--no-control", action="store_true", help="do not look for the planted bug")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    chosen = [case for case in cases() if any(word in str(case) for word in options.only)]
    threads = [case for case in thread_cases() if any(word in str(case) for word in options.only)]
    totals: Counter[str] = Counter()
    async with AsyncExitStack() as opened:
        stage = Stage()
        await stage.build(opened)
        judged = await _play_all(stage, chosen)
        judged += await play_threads(stage, opened, threads, first_row=len(chosen))
        written = await stage.written()
        failures = [f"prepared: {gid}" for gid in await stage.prepared()]
    for case, ended, play in judged:
        failures += [f"{case}: {problem}" for problem in judge(case, ended, play, written, totals)]
    for failure in failures:
        print(failure, file=sys.stderr)
    result: dict[str, Any] = {
        "cases": len(judged),
        "silent": totals["silent"],
        "hung": totals["hung"],
        "wrong_task_cancelled": totals["wrong_task_cancelled"],
        "failures": failures[:20],
    }
    holds = bool(judged) and not failures
    if not options.no_control:
        found = (await control("blocks", *CONTROL, mutants=MUTANTS)).result
        result["control"] = found["silent"] + found["wrong_task_cancelled"]
        holds = holds and found["silent"] >= 1 and found["wrong_task_cancelled"] >= 1
    return result, holds


Judged = tuple[Case | ThreadCase, BaseException | None, Play]


async def _play_all(stage: Stage, chosen: list[Case]) -> list[Judged]:
    judged: list[Judged] = []
    room = asyncio.Semaphore(AT_ONCE)

    async def one(row: int, case: Case) -> None:
        async with room:
            play = Play(stage, case.driver, row, case.timeout_s, case.way_in in INTERRUPTED)
            judged.append((case, await _play(case, play), play))

    loop = asyncio.get_running_loop()
    for eager in (False, True):
        if eager and sys.version_info >= (3, 12):
            loop.set_task_factory(asyncio.eager_task_factory)
        batch = [one(row, case) for row, case in enumerate(chosen) if case.eager is eager]
        await asyncio.gather(*batch)
        loop.set_task_factory(None)
    return judged


async def _play(case: Case, play: Play) -> BaseException | None:
    """What its program heard; None if nothing."""

    async def program() -> BaseException | None:
        play.task = asyncio.current_task()  # type: ignore[assignment]
        heard: BaseException | None = None
        try:
            await play_case(case, play)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it is judged later
            heard = error
        await _look_behind(play, heard)
        return heard

    task = asyncio.create_task(program())
    done, _ = await asyncio.wait([task], timeout=CASE_S)
    if not done:
        play.hung.append(f"it did not end within {CASE_S:g} s")
        task.cancel()
        await asyncio.wait([task], timeout=CASE_S)
        return None
    heard = task.exception() if not task.cancelled() else asyncio.CancelledError()
    return heard or task.result()


async def _look_behind(play: Play, heard: BaseException | None) -> None:
    """Nothing of the block may be left for the code that comes after it."""
    if play.task.cancelling() != play.cancels:
        play.wrong.append(f"{play.task.cancelling()} requests to cancel are left; {play.cancels} were made")
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        play.expect(play.cancels > 0, "a cancellation came after the block")
        if play.cancels == 0:
            play.wrong.append("the code behind the block was cancelled")
    await play.row_is_free()


def judge(
    case: Case | ThreadCase,
    heard: BaseException | None,
    play: Play,
    written: dict[str, set[str]],
    totals: Counter[str],
) -> list[str]:
    """What is wrong with one case; empty if nothing is."""
    ended = how(heard, play)
    found = written.get(play.what, set())
    problems = [*play.mistold]
    expected = case.ends
    if ended is Ended.COMMITTED and found != set(NAMES):
        totals["silent"] += 1
        problems.append(f"silent: it ended without an error, and is in {sorted(found)}")
    if ended in {Ended.ABORTED, Ended.ROLLED_BACK, Ended.APPLICATION} and found:
        problems.append(f"it was told as {ended.value}, and is in {sorted(found)}")
    if found not in (set(), set(NAMES)):
        problems.append(f"half: it is in {sorted(found)}")
    if ended not in expected:
        problems.append(f"it ended with {ended.value} ({heard!r})")
    if ended is Ended.ABORTED and case.cause and not isinstance(heard.cause, case.cause):  # type: ignore[union-attr]
        problems.append(f"its cause is told as {heard!r}")
    for total, list_ in (("hung", play.hung), ("wrong_task_cancelled", play.wrong)):
        totals[total] += len(list_)
        problems += [f"{total}: {each}" for each in list_]
    return problems


def how(heard: BaseException | None, play: Play) -> Ended:
    match heard:
        case None:
            return Ended.ROLLED_BACK if play.rolled_back else Ended.COMMITTED
        case TransactionAborted():
            return Ended.ABORTED
        case asyncio.CancelledError():
            return Ended.CANCELLED
        case AppError():
            return Ended.APPLICATION
        case _:
            return Ended.OTHER
