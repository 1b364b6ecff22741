"""The command as its users run it: a process of its own, with a clean environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
COMMAND = (sys.executable, "-m", "undoubt")
TIMEOUT_S = 60


@dataclass(frozen=True)
class Ran:
    """What one run left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The test's own, without any UNDOUBT_ setting, so that nothing of the developer's leaks in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UNDOUBT_")}
    return kept | {"PYTHONPATH": str(REPOSITORY)} | dict(extra or {})


def undoubt(
    *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, stdin: str | None = None
) -> Ran:
    """Run ``undoubt`` with these arguments to its end; stdin is no terminal."""
    done = subprocess.run(
        [*COMMAND, *args],
        cwd=cwd,
        env=environment(env),
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
