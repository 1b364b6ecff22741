"""Checks the settings alone. Settings that cannot be read have been refused before."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from undoubt.config import Settings
from undoubt.participants.findings import Finding, Severity
from undoubt.participants.redact import redact

DAY_S = 86_400.0
RETENTION_MIN_S = DAY_S
RETENTION_MAX_S = 366 * DAY_S


def look_at_configuration(settings: Settings) -> list[Finding]:
    where = settings.file or "the environment"
    return [
        _participants(settings, where),
        *_secrets(settings),
        _retention(settings.ledger.retention_s),
    ]


def _participants(settings: Settings, where: str) -> Finding:
    if settings.participants:
        names = ", ".join(sorted(settings.participants))
        return Finding(None, "configuration", Severity.OK, f"from {where}; participants: {names}")
    return Finding(
        None,
        "configuration",
        Severity.WARNING,
        f"no participant is configured in {where}",
        "there is no database that could take part: add a table for each database",
        '[participants.orders]\ndsn = "postgresql://app@host/orders"',
    )


def _secrets(settings: Settings) -> Iterator[Finding]:
    """Whether other users of this machine can read a file that contains passwords."""
    if settings.file is None:
        return
    hidden = [name for name, one in settings.participants.items() if redact(one.dsn) != one.dsn]
    if redact(settings.ledger.url) != settings.ledger.url:
        hidden.append("ledger")
    if not hidden:
        return
    mode = stat.S_IMODE(Path(settings.file).stat().st_mode)
    if mode & 0o077:
        yield Finding(
            None,
            "secrets",
            Severity.WARNING,
            f"passwords ({', '.join(sorted(hidden))}) are in {settings.file}, mode {mode:04o}",
            "other users of this machine can read them",
            f"chmod 600 {settings.file}",
        )
    else:
        yield Finding(None, "secrets", Severity.OK, f"only its owner can read {settings.file}")


def _retention(seconds: float) -> Finding:
    days = seconds / DAY_S
    what = f"closed sessions are kept for {days:g} {'day' if days == 1 else 'days'}"
    if seconds < RETENTION_MIN_S:
        why = (
            "a database that is restored to a moment before that, or that was down for longer, has branches"
            " that the ledger has forgotten; an operator must then decide each of them"
        )
    elif seconds > RETENTION_MAX_S:
        why = "no database is restored to a moment so long ago: the ledger only grows by it"
    else:
        return Finding(None, "retention", Severity.OK, what)
    return Finding(None, "retention", Severity.WARNING, what, why, f"retention_s = {7 * DAY_S:.0f}")
