"""``undoubt relay``: delivers what transactions have published."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import click

from undoubt import logs, wiring
from undoubt.cli.context import NO_LEDGER, Context, common, json_log, pass_context
from undoubt.cli.duration import Duration
from undoubt.cli.exits import CommandError, Exit
from undoubt.coordinator.wire.address import Address
from undoubt.participants.errors import UsageError
from undoubt.participants.plural import plural

if TYPE_CHECKING:
    from undoubt.participants.postgres import PostgresParticipant
    from undoubt.relay import Relay
    from undoubt.relay.meter import RelayMeter


@click.command()
@click.option("--participant", required=True, metavar="NAME", help="The database whose outbox is delivered.")
@click.option(
    "--to",
    required=True,
    metavar="SINK",
    help="https://HOST/PATH, kafka://HOST:PORT, or MODULE:FUNCTION.",
)
@click.option("--topic", "topics", multiple=True, metavar="TOPIC", help="Only this topic; may be repeated.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1_000),
    default=16,
    show_default=True,
    help="How many keys at once.",
)
@click.option(
    "--timeout",
    type=Duration(),
    default=30.0,
    show_default="30s",
    metavar="DURATION",
    help="When a delivery counts as failed.",
)
@click.option(
    "--metrics",
    "metrics_at",
    metavar="HOST:PORT",
    help="Serve metrics for Prometheus there, without a token.",
)
@click.option("--once", is_flag=True, help="Deliver what is there, each message once, then end.")
@json_log
@common
@pass_context
def relay(
    context: Context,
    /,
    *,
    participant: str,
    to: str,
    topics: tuple[str, ...],
    concurrency: int,
    timeout: float,
    metrics_at: str | None,
    once: bool,
    log_format: str,
) -> None:
    """Deliver the messages that transactions have published in a database.

    Each message is delivered at least once, those of one key in the order of their commits, and is removed
    once the sink has acknowledged it: by a status of 200 to 299, or by the return of the function. A message
    that fails is repeated, and only its own key waits. One relay at a time delivers a topic. SIGTERM ends it
    after the deliveries that are under way, so after --timeout at the latest. With --once the exit status is
    1 if a message was not delivered.

    \b
    Example:
      undoubt relay --participant orders --to https://shipping.internal/orders
      undoubt relay --participant orders --to shop.messages:receive --topic created
      undoubt relay --participant orders --to kafka://127.0.0.1:9092
    """
    logs.to_stderr(json_lines=log_format == "json", level=logging.DEBUG if context.debug else logging.INFO)
    options: dict[str, Any] = {"topics": topics, "concurrency": concurrency, "timeout": timeout}
    with contextlib.ExitStack() as stack:
        if metrics_at is not None:
            options["metrics"] = stack.enter_context(_metrics(metrics_at, participant))
        ran = context.run(_run(context, participant, to, options, once=once))
    _show(context, ran, once=once)


def _show(context: Context, ran: Relay, *, once: bool) -> None:
    if context.output.json:
        context.output.document({"delivered": ran.delivered, "failed": ran.failed})
    else:
        context.output.note(f"delivered: {ran.delivered}, failed: {ran.failed}")
    if once and ran.failed:
        count = plural(ran.failed, "message was", "messages were")
        raise CommandError(Exit.FAILURE, f"{count} not delivered")


@contextlib.contextmanager
def _metrics(where: str, participant: str) -> Iterator[RelayMeter]:
    """The metrics of a relay of ``participant``, which are served at ``where`` meanwhile."""
    try:
        from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415 - of an extra

        from undoubt.metrics import Metrics  # noqa: PLC0415 - of an extra
    except ImportError as error:
        raise UsageError("--metrics needs: pip install 'undoubt[metrics]'") from error
    try:
        address = Address.parse(where)
    except ValueError as error:
        raise UsageError(f"--metrics: {error}") from error
    registry = CollectorRegistry()
    meter = Metrics(registry).relay(participant)
    try:
        server, thread = start_http_server(address.port, address.host, registry=registry)
    except OSError as error:
        raise CommandError(Exit.FAILURE, f"cannot listen on {address}: {error}") from error
    try:
        yield meter
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _quiet() -> None:
    for noisy in ("httpx", "httpcore", "aiokafka"):  # the former two tell each request
        logging.getLogger(noisy).setLevel(logging.WARNING)


async def _run(
    context: Context, participant: str, to: str, options: Mapping[str, Any], *, once: bool
) -> Relay:
    from undoubt.relay import Relay, sink_of  # noqa: PLC0415 - needed only here

    _quiet()
    participants = wiring.registry(context.settings(), NO_LEDGER)
    try:
        found = cast("PostgresParticipant", participants.get(participant))
        made = Relay(found.outbox(), sink_of(to), **options)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, made.stop)
        await made.run(once=once)
        return made
    finally:
        await participants.close()
