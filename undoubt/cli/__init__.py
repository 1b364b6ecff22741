"""The command ``undoubt``.

``main`` is the entry point: it runs :mod:`undoubt.cli.root`, turns every error into one line on stderr
and a status (:mod:`undoubt.cli.exits`), and shows a traceback only with ``--debug``. One file per group
of commands; :mod:`~undoubt.cli.output` prints, :mod:`~undoubt.cli.context` opens what a command needs.
Nothing heavy (SQLAlchemy, drivers, rich) is imported before a command needs it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from undoubt.cli.context import Context
from undoubt.cli.exits import Exit, status_of
from undoubt.cli.output import printable_lines
from undoubt.cli.root import root

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    sys.exit(_run(args))


def _run(args: Sequence[str] | None) -> int:
    context = Context()
    try:
        status = root.main(args, prog_name="undoubt", obj=context, standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output (head, less) has enough. Nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILURE
    except Exception as error:  # noqa: BLE001 - the last frame: whatever it is, a user gets one line and a status
        return _failed(error, debug=context.debug)
    return status if isinstance(status, int) else Exit.OK


def _failed(error: Exception, *, debug: bool) -> int:
    status = status_of(error)
    if debug:
        traceback.print_exception(error)
    elif status is not None:
        _say(printable_lines(str(error)))
    else:
        _say(
            printable_lines(f"unexpected {type(error).__name__}: {error}"),
            "this is a bug of undoubt's, or of a library's; run it again with --debug to see where",
        )
    return Exit.FAILURE if status is None else status


def _say(*lines: str) -> None:
    for line in lines:
        print(f"undoubt: {line}", file=sys.stderr)
