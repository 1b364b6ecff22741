"""Password files as libpq reads them: https://www.postgresql.org/docs/current/libpq-pgpass.html."""

from __future__ import annotations

import logging
import os
import re
import stat
from pathlib import Path

log = logging.getLogger(__name__)

_LINE = re.compile(r"((?:[^\\:]|\\.)*):" * 4 + "(.*)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def password_for(
    path: str | None, host: str, port: str, database: str, user: str, *, default_host: str
) -> str | None:
    """The password of the first line that fits; None if there is none. ``path`` None: ``PGPASSFILE``, or
    ``~/.pgpass``. A file that others may read is not read, as by libpq, and that is logged.

    ``default_host`` is where libpq goes if no ``host`` is named: that folder is ``localhost`` in the file,
    and so is no name; any other folder is itself (passwordFromFile in src/interfaces/libpq/fe-connect.c). In
    ``/tmp``, say, every local user may listen."""
    file = Path(path or os.environ.get("PGPASSFILE") or "~/.pgpass").expanduser()
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            return None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("password file %s is not used: others may read it; chmod 0600", file)
            return None
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    wanted = ["localhost" if host in {"", default_host} else host, port, database, user]
    for line in lines:
        match = None if line.startswith("#") else _LINE.fullmatch(line)
        if match is not None and all(map(_fits, match.groups(), wanted)):
            return _ESCAPED.sub(r"\1", match[5])
    return None


def _fits(pattern: str, value: str) -> bool:
    return pattern == "*" or _ESCAPED.sub(r"\1", pattern) == value
