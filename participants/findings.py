"""What a look at a participant finds: everything that keeps it, or could keep it, from doing its part."""

from __future__ import annotations

import enum

import msgspec


class Severity(enum.StrEnum):
    """From the least to the most that somebody has to do about it."""

    OK = "ok"
    WARNING = "warning"
    """It works, and should be changed all the same."""
    UNREACHABLE = "unreachable"
    """It gave no answer: nothing else about it could be looked at."""
    PROBLEM = "problem"
    """It needs a hand."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    ``participant`` is None where it is about none of them; ``check`` names what was looked at, the same word
    whatever was found. ``what`` is the state, ``why`` what follows from it and what to do, empty where all
    is well; ``fix`` is the line to copy, None where there is no one line. ``unproved``: it trusts a role for
    which only names speak that anybody may take; who can have the ledger verify them keeps it, or not.
    """

    participant: str | None
    check: str
    severity: Severity
    what: str
    why: str = ""
    fix: str | None = None
    unproved: bool = False
