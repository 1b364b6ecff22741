"""Copies of ``deploy/`` with faults in them, each of which a part of the proof has to find."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.house.tree import ROOT

DEPLOY = ROOT / "deploy"


class Fault(NamedTuple):
    """``old`` stands once in ``file`` of ``deploy/`` and is replaced by ``new``.

    ``finds``: part of what the check that is meant says of it."""

    file: str
    old: str
    new: str
    finds: str


Find = Callable[[Path], Awaitable[list[str]]]


async def judged(find: Find, faults: Sequence[Fault]) -> list[str]:
    """What ``find`` finds in ``deploy/``, and the faults that it does not find where they are planted."""
    found = await find(DEPLOY)
    for fault in faults:
        with tempfile.TemporaryDirectory(prefix="undoubt-deploy-") as name:
            place = Path(name, "deploy")
            shutil.copytree(DEPLOY, place)
            text = (place / fault.file).read_text()
            if text.count(fault.old) != 1:
                found.append(f"the fault {fault.old!r} cannot be planted in {fault.file}")
                continue
            (place / fault.file).write_text(text.replace(fault.old, fault.new))
            seen = await find(place)
            if not any(fault.finds in each for each in seen):
                found.append(
                    f"{fault.new!r} instead of {fault.old!r} in {fault.file} is not found: "
                    f"{fault.finds!r} is not in {seen}"
                )
    return found
