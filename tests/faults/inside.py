"""One run, in the world that :mod:`tests.faults.__main__` has made for it. Ends early, and in order, when its
input ends: then whoever started it is gone, or wants it to."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.faults.judge import judged
from tests.faults.machines import MachineFailed
from tests.faults.nemesis import Nemesis
from tests.faults.schedule import SIGNALS, Kind, schedule
from tests.faults.stage import Stage, stage
from undoubt.coordinator.settings import PROTOCOLS

ORDERLY_S = 30.0
"""After so long an end that was asked for is made. As the first process of its namespace it takes all others
with it."""
LOOK_S = 0.5
FAILURES_SHOWN_MAX = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=None, help="drawn if it is not given")
    parser.add_argument("--seconds", type=float, default=60.0, help="for how long things go wrong")
    parser.add_argument(
        "--signals-only",
        action="store_true",
        help="only SIGKILL and SIGSTOP: needs neither root nor anything installed",
    )
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="2pc", help="of the transfers")


async def run(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """What is printed in the end."""
    seconds: float = given.seconds
    kinds = SIGNALS if given.signals_only else frozenset(Kind)
    faults = schedule(given.seed, seconds, kinds)
    print(f"seed {given.seed}: {len(faults)} faults in {seconds:g} s; in {folder}", file=sys.stderr)
    print("\n".join(str(fault) for fault in faults), file=sys.stderr, flush=True)
    async with stage(folder, private=not given.signals_only, protocol=given.protocol) as made:
        nemesis = Nemesis(made, faults)
        began_at = time.monotonic()
        watching = asyncio.create_task(_watch(made, nemesis))
        try:
            await asyncio.gather(nemesis.run(), asyncio.sleep(seconds))
        finally:
            watching.cancel()
        healed_at = time.monotonic()
        nemesis.say("healed")
        verdict = await judged(made)
        nemesis.say("judged")
    told = made.told
    wrong = [*nemesis.failures, *verdict.wrong()]
    enough = bool(told.acknowledged) and verdict.answered > len(told.acknowledged)
    enough = enough and bool(told.holders.grants) and bool(told.holders.certain)
    faulty = all(nemesis.counts[str(kind)] for kind in kinds)
    return {
        "ok": not wrong and enough and faulty,
        "seed": given.seed,
        "seconds": seconds,
        "acknowledged": len(told.acknowledged),
        "aborted": len(told.aborted),
        "outcome_unknown": len(told.unknown),
        **verdict.told(),
        "locks_granted": len(told.holders.grants),
        "longest_stall_s": round(told.longest_stall_s(began_at, healed_at), 2),
        "faults": dict(nemesis.counts),
        "left_out": sorted(set(Kind) - kinds),
        "failures": wrong[:FAILURES_SHOWN_MAX],
    }


async def _watch(made: Stage, nemesis: Nemesis) -> None:
    """Nothing ends by itself, whatever happens around it."""
    while True:
        await asyncio.sleep(LOOK_S)
        made.listen()
        try:
            made.check()
        except MachineFailed as error:
            nemesis.failures.append(str(error))
            nemesis.say(str(error))
            return


async def main(given: argparse.Namespace) -> int:
    running = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def watch_input() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        threading.Timer(ORDERLY_S, os._exit, [1]).start()
        if running is not None:
            loop.call_soon_threadsafe(running.cancel)

    threading.Thread(target=watch_input, daemon=True).start()
    result = await run(Path(os.environ["TMPDIR"]), given)
    print(json.dumps(result), flush=True)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="faults")
    arguments(parser)
    status = 130
    with contextlib.suppress(asyncio.CancelledError):
        status = asyncio.run(main(parser.parse_args()))
    sys.exit(status)
