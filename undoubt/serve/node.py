"""``undoubt node``: runs a member of the ledger's cluster, and recovery while that member leads.

The node itself (:mod:`undoubt.coordinator.node`) does not depend on recovery. This module runs a recovery
service over the participants of the node's configuration, which works while the node leads.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import SystemRandom

from undoubt import wiring
from undoubt.config import Settings
from undoubt.coordinator.errors import LedgerError, LedgerUnusable
from undoubt.coordinator.ledger.cluster.url import wire_of
from undoubt.coordinator.node.node import Node
from undoubt.coordinator.node.storage.contract import DiskIdentity
from undoubt.coordinator.node.storage.node_storage import NodeStorage
from undoubt.coordinator.supervision import Supervised
from undoubt.coordinator.wire import PeerIdentity, PeerRole, TlsUnusable, WireSettings, refuse_exposed, tls_of
from undoubt.participants.errors import UsageError
from undoubt.recovery.meter import RecoveryMeter
from undoubt.recovery.service import RecoveryService
from undoubt.serve import pending_acts
from undoubt.serve.bootstrap import listen_address, number_of
from undoubt.serve.notify import reporting

log = logging.getLogger(__name__)

HAND_OVER_S = 5.0
"""How long a leader that has to stop waits until another node has taken over."""
LOOK_S = 0.2


async def run(
    settings: Settings, stop: asyncio.Event, say: Callable[[str], None], *, insecure: bool = False
) -> None:
    """Run a node until ``stop`` is set. ``say`` is called with one line once the node is ready. Raises
    ``UsageError``, and ``LedgerError``, also if the node has stopped by itself."""
    async with node(settings, insecure=insecure) as running:
        me = running.identity
        _tune_garbage_collector()
        say(f"node {me.node} of cluster {me.cluster} is ready at {listen_address(settings)}")
        async with reporting(f"node {me.node} of cluster {me.cluster}"):
            stopping = asyncio.create_task(stop.wait())
            running.failed.add_done_callback(lambda _: stopping.cancel())
            await asyncio.wait([stopping])
        if running.failed.done():
            error = running.failed.result()
            raise LedgerUnusable(f"node {me.node} has stopped: {error}") from error
        await running.hand_over(HAND_OVER_S)


@contextlib.asynccontextmanager
async def node(settings: Settings, *, insecure: bool = False) -> AsyncIterator[Node]:
    """A running node of these settings, with recovery while the node leads. The exit stops it."""
    listen = listen_address(settings)
    refuse_exposed(
        listen,
        tls=settings.ledger.wire.tls is not None,
        insecure=insecure,
        way_out="`undoubt cluster certs` makes files for ledger.tls_ca, tls_cert and tls_key",
    )
    if settings.node.console:
        _check_console(settings)
    made = await _open(settings)
    tasks: list[asyncio.Task[None]] = []
    stack = contextlib.AsyncExitStack()
    try:
        try:
            await made.start(listen)
        except OSError as error:
            raise UsageError(f"cannot listen on {listen}: {error.strerror or error}") from error
        meter = await _report_health(made, settings, stack)
        recovering = Supervised("node recovery", lambda: _recover(made, settings, meter))
        tasks.append(recovering.start("undoubt-node-recovery"))
        recording = Supervised(
            "node acts", lambda: pending_acts.record(Path(settings.node.data), settings.ledger)
        )
        tasks.append(recording.start("undoubt-node-acts"))
        if settings.node.console:
            showing = Supervised("node console", lambda: _show(settings))
            tasks.append(showing.start("undoubt-node-console"))
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await stack.aclose()
        await made.stop()


def _tune_garbage_collector() -> None:
    """Make collections rare: the present objects stay, and new objects rarely have cycles. Frequent
    collections would only delay heartbeats."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _open(settings: Settings) -> Node:
    number = number_of(settings)
    storage, stored = await NodeStorage.open(Path(settings.node.data), number=number)
    try:
        wire = wire_of(settings.ledger)
        _check_certificate(wire, stored.identity)
        return Node(storage, stored, settings.node, settings.ledger, wire, random=SystemRandom())
    except BaseException:
        await storage.close()
        raise


def _check_certificate(wire: WireSettings, identity: DiskIdentity) -> None:
    """Check that this node's certificate names this node. Otherwise every peer would refuse it, and it could
    only report that it reaches no peer. Raises ``LedgerUnusable``."""
    if wire.tls is not None:
        try:
            tls_of(wire.tls).check_own(PeerIdentity(PeerRole.NODE, identity.cluster, identity.node))
        except TlsUnusable as error:
            raise LedgerUnusable(str(error)) from error


async def _report_health(
    made: Node, settings: Settings, stack: contextlib.AsyncExitStack
) -> RecoveryMeter | None:
    """Serve the node's health until ``stack`` is closed, if the settings say where. Returns what counts for
    its metrics. Raises ``UsageError``."""
    if not settings.node.health:
        return None
    try:
        from undoubt.serve.health import NodeHealth, serving  # noqa: PLC0415 - of the extra
    except ImportError as error:
        raise UsageError("node.health needs the extra: pip install 'undoubt[sidecar]'") from error
    health = NodeHealth(made)
    place = await stack.enter_async_context(serving(health, settings.node.health))
    log.info("health and metrics are at %s", place)
    return health.metrics


async def _recover(made: Node, settings: Settings, meter: RecoveryMeter | None) -> None:
    """Run recovery once the node leads: a node that has just joined does not have the ledger's id yet. If
    another ledger is moved to the cluster, begin again: the detector of deadlocks knows sessions by the
    ledger's id."""
    while not made.ledger.leads:
        await asyncio.sleep(LOOK_S)
    while True:
        ledger_id = made.ledger.ledger_id
        participants = wiring.registry(settings, ledger_id)
        try:
            async with RecoveryService(made.ledger, participants, settings.recovery, meter=meter):
                while made.ledger.ledger_id == ledger_id:
                    await asyncio.sleep(LOOK_S)
        finally:
            await participants.close()


def _check_console(settings: Settings) -> None:
    """Raise ``UsageError`` if the console cannot be served with these settings, or without the extra."""
    try:
        from undoubt.serve.console.server import check  # noqa: PLC0415 - of the extra
    except ImportError as error:
        raise UsageError("node.console needs the extra: pip install 'undoubt[sidecar]'") from error
    check(settings)


async def _show(settings: Settings) -> None:
    """Serve the console, once the cluster answers."""
    from undoubt.serve.console.server import serving  # noqa: PLC0415 - of the extra

    while True:
        try:
            async with serving(settings) as place:
                log.info("the console is at %s", place)
                await asyncio.Event().wait()
        except LedgerError as error:
            log.info("the console waits for the cluster: %s", error)
            await asyncio.sleep(LOOK_S)
