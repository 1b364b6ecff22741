"""What is in ``deploy/``, checked with the tools that would use it, and run as far as that needs no daemon.

Each part says ``ok``, else what is wrong. ``helm``: the charts are linted and rendered by Helm, each object
is checked against the schemas of Kubernetes and against the others, and undoubt's own commands take what
the containers would give them. ``systemd``: the units are verified, their exposure is measured, and what
they start reports to a socket as they demand, with no other system calls than they leave. ``dockerfile``:
the image is built by the Dockerfile's own steps, and all containers of the compose file run on it, as their
user, on a read-only root. ``dashboard``: Prometheus answers each query of the dashboard about a whole system
that works, whose metrics are those of docs/monitoring.md. ``alerts``: promtool's checks and tests.

A part is ``ok`` only if it also finds each fault that is planted in a copy of its files.

In the order in which a run uses them:

====================  ========================================================================================
:mod:`.planted`       copies the files, and plants faults.
:mod:`.alerts`        is about the rules of Prometheus.
:mod:`.units`         is about systemd.
:mod:`.sandbox`       runs a command with the system calls that a unit leaves.
:mod:`.chart`         is about Helm.
:mod:`.objects`       looks at what a chart renders to.
:mod:`.dockerfile`    reads a Dockerfile.
:mod:`.container`     runs a command as a container's runtime would.
:mod:`.image`         is about the image and the compose file.
:mod:`.dashboard`     is about Grafana.
====================  ========================================================================================

"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any, Protocol

from tests.prove.deploy import alerts, chart, dashboard, image, units


class Part(Protocol):
    """A module that is a part of the proof."""

    def why_not(self) -> str | None:
        """What this machine lacks for it."""

    async def main(self) -> list[str]:
        """What is wrong."""


PARTS: dict[str, Part] = {
    "helm": chart,
    "systemd": units,
    "dockerfile": image,
    "dashboard": dashboard,
    "alerts": alerts,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    told = {}
    for name in options.only or PARTS:
        began = time.monotonic()
        part = PARTS[name]
        faults = [why] if (why := part.why_not()) else await part.main()
        told[name] = "; ".join(faults) or "ok"
        print(f"{name}: {told[name]} ({time.monotonic() - began:.0f} s)", file=sys.stderr)
    return told, set(told.values()) == {"ok"}


def missing() -> list[str]:
    """What this machine lacks for the whole proof."""
    return [why for part in PARTS.values() if (why := part.why_not())]


async def run(*command: str, **options: Any) -> tuple[int, str]:
    """The exit status of ``command``, and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        **options,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode(errors="replace")
