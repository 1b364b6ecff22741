"""The control of a proof: the same proof, run in a copy of the tree in which bugs are planted.

::

    found = await control("blocks", "--no-control", mutants=["block-ends-silently"])
    result["control"] = found.result["silent"]

A proof that finds nothing there would find nothing anywhere, so it proves nothing. The bugs are the patches
of ``tests/mutants``, which ``make mutants`` looks for as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mutants.__main__ import HERE, copy, run

TIMEOUT_S = 900.0
INTERRUPTED_S = 30.0
"""How long a proof that was interrupted may take to end the servers that it started."""


class Void(Exception):
    """The control did not run as it should, so what it found means nothing."""


@dataclass(frozen=True, slots=True)
class Found:
    """``result`` is the line of JSON that the proof printed there, ``holds`` whether it held."""

    result: dict[str, Any]
    holds: bool


async def control(
    proof: str,
    *arguments: str,
    mutants: Sequence[str],
    folder: Path = HERE,
    timeout_s: float = TIMEOUT_S,
) -> Found:
    """``python -m tests.prove proof arguments…`` in a copy of the tree with all of ``mutants``, names of
    patches in ``folder``, applied. ``arguments`` must keep the proof from running its own control.

    Raises :class:`Void` if a patch does not apply, or the proof does not end with a line of JSON within
    ``timeout_s`` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="undoubt-control-") as name:
        place = Path(name)
        await asyncio.to_thread(_plant, place, mutants, folder)
        return await _run(place, proof, arguments, timeout_s)


def _plant(place: Path, mutants: Sequence[str], folder: Path) -> None:
    copy(place)
    # Programs of PostgreSQL that run as another user must be able to pass.
    place.chmod(0o755)
    for mutant in mutants:
        patch = (folder / f"{mutant}.patch").resolve()
        applied = run(place, "git", "apply", "-C1", str(patch))
        if applied.returncode:
            raise Void(f"{mutant} does not apply: {applied.stderr.strip()}")


async def _run(place: Path, proof: str, arguments: Sequence[str], timeout_s: float) -> Found:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.prove", proof, *arguments,
        cwd=place,
        env={
            **os.environ,
            "PYTHONPATH": str(place),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GIT_CEILING_DIRECTORIES": str(place.parent),
        },
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            out, _ = await process.communicate()
    except TimeoutError:
        raise Void(f"{proof} did not end within {timeout_s:g} s with its bugs planted") from None
    finally:
        await _end(process)
    lines = out.decode().splitlines()
    try:
        told = json.loads(lines[-1]) if lines else None
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise Void(f"{proof} ended with {process.returncode} and told no result with its bugs planted")
    return Found(told, process.returncode == 0)


async def _end(process: asyncio.subprocess.Process) -> None:
    """First by the signal that lets it end its servers, which lead sessions of their own."""
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), INTERRUPTED_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
