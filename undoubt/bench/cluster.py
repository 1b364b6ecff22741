"""The three nodes of a comparison: processes that run as ``undoubt node`` does, with recovery for both
databases while they lead, and their logs on disk beside everything else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from undoubt.bench.contract import DATABASES
from undoubt.serve.local.nodes import Nodes

PARTICIPANT = """
[participants.{name}]
dsn = {dsn}
"""


@contextlib.asynccontextmanager
async def cluster(folder: Path, dsns: tuple[str, str]) -> AsyncIterator[Nodes]:
    """Running, one of them leading, with the timers of a node whose configuration names none. Raises
    ``NodeFailed``."""
    more = "".join(
        PARTICIPANT.format(name=name, dsn=msgspec.json.encode(dsn).decode())
        for name, dsn in zip(DATABASES, dsns, strict=True)
    )
    nodes = Nodes(folder, keep=False, more=more)
    try:
        await nodes.start()
        yield nodes
    finally:
        await nodes.close()
