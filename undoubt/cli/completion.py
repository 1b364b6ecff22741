"""``undoubt completion``: the script that a shell sources."""

from __future__ import annotations

import os
from pathlib import PurePath

import click
from click.shell_completion import get_completion_class

from undoubt.cli.context import common
from undoubt.cli.exits import CommandError, Exit
from undoubt.cli.root import root

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
@common
def completion(shell: str | None) -> None:
    """Print the completion script of SHELL (bash, zsh or fish) [default: that of $SHELL].

    \b
    Example:
      source <(undoubt completion bash)
      undoubt completion fish > ~/.config/fish/completions/undoubt.fish
    """
    shell = shell or PurePath(os.environ.get("SHELL", "")).name
    found = get_completion_class(shell) if shell in SHELLS else None
    if found is None:
        raise CommandError(Exit.USAGE, "name a shell: undoubt completion bash, zsh or fish")
    click.echo(found(root, {}, "undoubt", "_UNDOUBT_COMPLETE").source())
