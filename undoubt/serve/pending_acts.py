"""Keeps the acts of operators on a node that does not run yet beside its disk, and records them later.

``cluster init`` and ``cluster restore`` make a cluster that does not run yet, so they cannot record their act
in the ledger. Each first node records its act when it is started: in its log immediately, and in the ledger
once there is a leader."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import msgspec

from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.contract import Act
from undoubt.coordinator.ledger.durable import sync_folder
from undoubt.coordinator.settings import LedgerSettings

log = logging.getLogger(__name__)

FILE_NAME = "act.pending"
PAUSE_S = 1.0


def keep(folder: Path, act: Act) -> None:
    """Write ``act`` to a file in ``folder``, for :func:`record`. The file is durable on return."""
    with (folder / FILE_NAME).open("wb") as file:
        file.write(msgspec.json.encode(act.clipped()))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


async def record(folder: Path, settings: LedgerSettings) -> None:
    """Record the act that :func:`keep` has written to ``folder``, if any; repeats until it succeeds."""
    path = folder / FILE_NAME
    if (act := _kept(path)) is None:
        return
    log.warning("%s of %s by %s%s", act.verb, act.subject, act.who, f": {act.note}" if act.note else "")
    while True:
        try:
            await _record_in_ledger(act, settings)
            path.unlink(missing_ok=True)
        except (LedgerError, OSError) as error:
            log.info("%s of %s is not recorded yet: %s", act.verb, act.subject, error)
            await asyncio.sleep(PAUSE_S)
        else:
            return


def _kept(path: Path) -> Act | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Act)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("the operator who made this node is not recorded: %s: %s", path, error)
        return None


async def _record_in_ledger(act: Act, settings: LedgerSettings) -> None:
    ledger = await ClusterLedger.open(settings)
    try:
        await ledger.record_act(act)
    finally:
        await ledger.close()
