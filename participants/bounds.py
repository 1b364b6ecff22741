"""Bounds of values that come from users and other processes: durations in seconds, counts, texts, paths of
files.

Every function that takes such a value checks it here first. A value that passed only ``float`` (NaN,
infinity, 10**300) would fail later, in a background task or in a message that other requests share.
"""

from __future__ import annotations

from collections.abc import Iterable

from undoubt.participants.errors import UsageError

DURATION_S_MAX = 3_650 * 86_400.0
"""Ten years: in milliseconds this fits the integers of the wire protocol, of the SQL ledgers and of
timers."""
SERVER_TIMEOUT_S_MAX = 24 * 86_400.0
"""PostgreSQL keeps its timeouts in milliseconds, in 32 bits (``src/backend/utils/misc/guc_tables.c``)."""
COUNT_MAX = 2**31 - 1
TEXT_BYTES_MAX = 1_000
ROLE_BYTES_MAX = 63
"""PostgreSQL cuts longer names of roles (``NAMEDATALEN`` in ``src/include/pg_config_manual.h``): no role has
a longer name."""
PATH_BYTES_MAX, FILE_NAME_BYTES_MAX = 4_095, 255
"""The limits of Linux, without the terminating NUL (``PATH_MAX``, ``NAME_MAX`` in
``include/uapi/linux/limits.h``)."""


class OutOfBounds(UsageError, ValueError):
    """A value has the wrong type or is out of bounds. ``name`` is the name of the argument or setting,
    ``why`` the rest of the message."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} {why}")
        self.name = name
        self.why = why


def seconds(
    name: str, value: object, *, least: float = 0.0, most: float = DURATION_S_MAX, zero: bool = True
) -> float:
    """``value`` if it is a number of seconds from ``least`` to ``most``; ``zero``: 0 is allowed. Raises
    :class:`OutOfBounds`, also for text, a boolean, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OutOfBounds(name, f"must be a number of seconds, not {_shown(value)}")
    # Integers are compared without conversion: a large integer does not fit into a float. NaN fails every
    # comparison.
    if not least <= value <= most or not (zero or value):
        low = f"{least:g}" if zero or least else "more than 0"
        raise OutOfBounds(name, f"must be {low} to {most:g} seconds, not {_shown(value)}")
    return float(value)


def count(name: str, value: object, *, least: int = 0, most: int = COUNT_MAX) -> int:
    """``value`` if it is an integer from ``least`` to ``most``. Raises :class:`OutOfBounds`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise OutOfBounds(name, f"must be an integer, not {_shown(value)}")
    if not least <= value <= most:
        raise OutOfBounds(name, f"must be {least} to {most}, not {_shown(value)}")
    return value


def text(name: str, value: object, *, most: int = TEXT_BYTES_MAX, empty: bool = True) -> str:
    """``value`` if it is text of at most ``most`` bytes as UTF-8 and without NUL; ``empty``: it may be empty.
    Raises :class:`OutOfBounds`, which never shows the value: the value may contain a password."""
    if not isinstance(value, str):
        raise OutOfBounds(name, f"must be text, not of type {type(value).__name__}")
    if not value and not empty:
        raise OutOfBounds(name, "must not be empty")
    if "\0" in value:
        raise OutOfBounds(name, "must not have NUL characters")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise OutOfBounds(name, "must be valid UTF-8") from None
    if size > most:
        raise OutOfBounds(name, f"must have at most {most} bytes, not {size}")
    return value


def texts(name: str, value: object, *, most: int = TEXT_BYTES_MAX) -> tuple[str, ...]:
    """``value`` if it is a tuple of texts, none of them empty. Raises :class:`OutOfBounds`."""
    if not isinstance(value, tuple):
        raise OutOfBounds(name, f"must be a tuple of texts, not of type {type(value).__name__}")
    return tuple(text(name, each, most=most, empty=False) for each in value)


def path(name: str, value: object, *, empty: bool = False, last_most: int = FILE_NAME_BYTES_MAX) -> str:
    """``value`` if a file can have that path; ``last_most``: bytes of the file's own name. Raises
    :class:`OutOfBounds`."""
    given = text(name, value, most=PATH_BYTES_MAX, empty=empty)
    parts = [part for part in given.split("/") if part]
    if given and not parts:
        raise OutOfBounds(name, f"names no file: {given!r}")
    for part in parts:
        most = last_most if part is parts[-1] else FILE_NAME_BYTES_MAX
        if (size := len(part.encode())) > most:
            raise OutOfBounds(name, f"has a file name of {size} bytes, at most {most} are possible")
    return given


def flag(name: str, value: object) -> bool:
    """``value`` if it is True or False. Raises :class:`OutOfBounds` for any other value."""
    if not isinstance(value, bool):
        raise OutOfBounds(name, f"must be True or False, not {_shown(value)}")
    return value


def choice(name: str, value: object, known: Iterable[str]) -> str:
    """``value`` if it is one of the texts ``known``. Raises :class:`OutOfBounds`."""
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        raise OutOfBounds(name, f"must be one of {', '.join(names)}, not {_shown(value)}")
    return value


def having(name: str, value: object, what: str, *calls: str) -> None:
    """Raise :class:`OutOfBounds` unless ``value`` is callable or, if ``calls`` are given, is an object with
    all these methods. ``what`` describes the wanted value in the message."""
    lacks = [call for call in calls if not callable(getattr(value, call, None))]
    if lacks or (not callable(value) if not calls else isinstance(value, type)):
        raise OutOfBounds(name, f"must be {what}, not {_shown(value)}")


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"  # CPython refuses to write very long ones
    shown = f"{value!r}"
    return shown if len(shown) <= 80 else f"{shown[:80]}…"
