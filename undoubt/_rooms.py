"""undoubt is made of four import packages of one distribution. If an application's own package has the name
of one of them and comes first on the path, nothing works; this says so in one sentence."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOMS = ("participants", "coordinator", "recovery")


def check() -> None:
    """Raise ``ImportError`` if one of the rooms would be imported from somewhere else."""
    home = Path(__file__).resolve().parent.parent
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent
        if found is None and spec is not None and spec.submodule_search_locations:
            found = Path(next(iter(spec.submodule_search_locations))).resolve()
        if found != home / room:
            where = "nowhere" if found is None else str(found)
            raise ImportError(
                f"undoubt needs its own package {room!r} from {home / room}, but Python finds {where}:"
                f" another package called {room!r} hides it. Rename that one, or put it behind undoubt"
            )
