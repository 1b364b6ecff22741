"""Where figures are from."""

from __future__ import annotations

import os
import platform


def machine() -> str:
    """One line about where the figures are from, and how busy it was."""
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return (
        f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, load average afterwards"
        f" {load}."
    )
