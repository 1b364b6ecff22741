"""``undoubt sidecar``: transactions over HTTP."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Callable

import click

from undoubt import logs
from undoubt.cli.context import Context, common, json_log, pass_context
from undoubt.participants.errors import UsageError
from undoubt.serve.loop import fastest_loop

log = logging.getLogger(__name__)


@click.command()
@click.option(
    "--new-token", metavar="NAME", help="Draw a token for a client of that name, print it, and end."
)
@json_log
@common
@pass_context
def sidecar(context: Context, new_token: str | None, log_format: str) -> None:
    """Serve transactions over HTTP, until interrupted.

    For services in any language: they begin a transaction, run branches with their own drivers or through the
    sidecar, and commit. SIGTERM and SIGINT end it in an orderly way, SIGHUP reads the tokens anew.

    \b
    Example:
      undoubt sidecar --config undoubt.toml
      undoubt sidecar --new-token shop
    """
    if new_token is not None:
        _draw(context, new_token)
        return
    logs.to_stderr(json_lines=log_format == "json", level=logging.DEBUG if context.debug else logging.INFO)
    for noisy in ("uvicorn", "httpx", "httpcore"):  # the latter would show headers
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_run(context, log.info if log_format == "json" else context.output.note))


def _draw(context: Context, name: str) -> None:
    """The token on stdout, once; what goes into the configuration on stderr."""
    needs_extra("sidecar")
    from undoubt.serve.sidecar.settings import TokenSettings  # noqa: PLC0415 - as below
    from undoubt.serve.sidecar.tokens import TOKEN_PREFIX, hash_of  # noqa: PLC0415 - as below

    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    made = TokenSettings(name=name, sha256=hash_of(token), participants=("*",))
    context.output.note(
        f'[[sidecar.tokens]]\nname = "{made.name}"\nsha256 = "{made.sha256}"\n'
        'roles = ["transact"]\nparticipants = ["*"]'
    )
    click.echo(token)


def needs_extra(command: str) -> None:
    """Raises ``UsageError`` without the packages of the HTTP server."""
    try:
        import starlette  # noqa: F401, PLC0415 - of the extra
        import uvicorn  # noqa: F401, PLC0415 - of the extra
    except ImportError as error:
        raise UsageError(f"undoubt {command} needs the extra: pip install 'undoubt[sidecar]'") from error


async def _run(context: Context, say: Callable[[str], None]) -> None:
    needs_extra("sidecar")
    # The HTTP server comes with it, which `undoubt sidecar --help` can do without.
    from undoubt.serve.sidecar.server import run  # noqa: PLC0415

    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    await run(context.settings, stop, reload, say)
