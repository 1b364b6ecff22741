"""The command ``undoubt``.

``main`` is the entry point: it runs :mod:`undoubt.cli.root`, prints every error as one line on stderr, exits
with a status (:mod:`undoubt.cli.exits`), and shows a traceback only with ``--debug``. SQLAlchemy, drivers and
rich are imported when a command needs them.

First what all commands share, in the order in which a command passes it; then one module for each group of
commands:

====================  ========================================================================================
:mod:`.root`          names the commands, and imports the one that is called.
:mod:`.context`       defines the flags of all commands, loads the settings, and opens ledger and
                      participants.
:mod:`.names`         parses transaction ids and gids on the command line.
:mod:`.duration`      parses a length of time on the command line.
:mod:`.output`        prints results as a table or as JSON.
:mod:`.exits`         defines the exit statuses, and gives each error one.
:mod:`.node`          ``undoubt node``: runs a member of the ledger's cluster.
:mod:`.health`        ``undoubt health``: asks a node or a sidecar whether it lives.
:mod:`.sidecar`       ``undoubt sidecar``: serves transactions over HTTP.
:mod:`.dev`           ``undoubt dev``: runs a whole system on this machine.
:mod:`.cluster`       ``undoubt cluster init, status, certs``.
:mod:`.members`       ``undoubt cluster add, promote, remove, transfer, snapshot, backup, restore``.
:mod:`.ledger`        ``undoubt ledger``: creates, migrates, checks, backs up and restores a ledger.
:mod:`.participants`  ``undoubt participants``: lists, checks and migrates databases.
:mod:`.doctor`        ``undoubt doctor``: prints the findings of :mod:`undoubt.doctor`.
:mod:`.tx`            ``undoubt tx``: shows transactions, and ends one.
:mod:`.locks`         ``undoubt locks``: shows distributed locks, and releases one.
:mod:`.relay`         ``undoubt relay``: delivers what transactions have published.
:mod:`.tx_resolve`    ``undoubt tx resolve``: ends all branches of one transaction.
:mod:`.indoubt`       ``undoubt indoubt``: lists, explains and ends prepared branches.
:mod:`.explain_page`  the page of ``undoubt indoubt explain``.
:mod:`.recover`       ``undoubt recover``: runs recovery by hand.
:mod:`.adopt`         ``undoubt recover --adopt``: ends the branches of a ledger that is lost.
:mod:`.audit`         ``undoubt audit``: lists what operators did.
:mod:`.completion`    ``undoubt completion``: prints the completion script of a shell.
====================  ========================================================================================
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
        # The reader of our output (head, less) has closed the pipe: nothing more may be written, not even at
        # exit.
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
            "this is a bug of undoubt or of a library; run it again with --debug to see where",
        )
    return Exit.FAILURE if status is None else status


def _say(*lines: str) -> None:
    for line in lines:
        print(f"undoubt: {line}", file=sys.stderr)
