"""Acts of operators on a node that does not run yet: kept beside its data, recorded once the cluster answers.

``cluster init`` and ``cluster restore`` make a cluster that nobody can be told in. Each first node tells of
its own when it is started: in its log at once, and in the ledger once there is a leader."""

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
    """Until :func:`tell`. Durable when it returns."""
    with (folder / FILE_NAME).open("wb") as file:
        file.write(msgspec.json.encode(act.clipped()))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


async def tell(folder: Path, settings: LedgerSettings) -> None:
    """Record what :func:`keep` kept there, if anything; tries again for as long as it takes."""
    path = folder / FILE_NAME
    if (act := _kept(path)) is None:
        return
    log.warning("%s of %s by %s%s", act.verb, act.subject, act.who, f": {act.note}" if act.note else "")
    while True:
        try:
            await _record(act, settings)
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
        log.warning("who made this node is not recorded: %s: %s", path, error)
        return None


async def _record(act: Act, settings: LedgerSettings) -> None:
    ledger = await ClusterLedger.open(settings)
    try:
        await ledger.record_act(act)
    finally:
        await ledger.close()
