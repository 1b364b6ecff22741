"""Disks of the machines: small ones, so that they can be filled up."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.faults.network import ProgramFailed, ran

SIZE = "80m"
"""A node holds 16 MB in reserve while there are twice as many to be had."""


async def mount_private(*places: Path) -> None:
    """Nothing that is written there is seen outside, or stays."""
    for place in places:
        await ran("mount", "-t", "tmpfs", "tmpfs", str(place))


async def mount_small(place: Path) -> None:
    """A file system of its own on the disk of the machine that this runs on, so that a sync takes as long as
    it does there. The device goes with the mount. Where there are no loop devices (in most containers), one
    in memory."""
    image = place.with_suffix(".img")
    await ran("truncate", "--size", SIZE, str(image))
    await ran("mkfs.ext4", "-q", str(image))
    try:
        await ran("mount", "-o", "loop", str(image), str(place))
    except ProgramFailed as error:
        print(f"{place.name} is in memory, where a sync costs nothing: {error}", file=sys.stderr)
        await ran("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place))
