"""Starts the three nodes that the contenders with a replicated ledger share.

The nodes are processes that run like ``undoubt node``, with recovery for both databases while they lead.
Their logs are on the disk that the databases also use."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from undoubt.bench.contract import DATABASES
from undoubt.serve.local.nodes import Nodes

PARTICIPANT = """
[participants.{name}]
dsn = {dsn}
"""


@contextlib.asynccontextmanager
async def cluster(
    folder: Path,
    dsns: tuple[str, str],
    ports: Sequence[int] | None = None,
    reached_at: Sequence[int] | None = None,
    *,
    options: str = "",
) -> AsyncIterator[Nodes]:
    """The running nodes, one of which leads, with the default timers; ``ports`` and ``reached_at`` as for
    ``Nodes``; ``options``: lines for their section ``[node]``. Raises ``NodeFailed``."""
    more = options + "".join(
        PARTICIPANT.format(name=name, dsn=msgspec.json.encode(dsn).decode())
        for name, dsn in zip(DATABASES, dsns, strict=True)
    )
    nodes = Nodes(folder, keep=False, more=more, ports=ports, reached_at=reached_at)
    try:
        await nodes.start()
        yield nodes
    finally:
        await nodes.close()
