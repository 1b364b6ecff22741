"""The findings of a check of a participant: what keeps it, or could keep it, from taking part in
transactions."""

from __future__ import annotations

import enum

import msgspec


class Severity(enum.StrEnum):
    """How urgent a finding is, from the least to the most urgent."""

    OK = "ok"
    WARNING = "warning"
    """It works, but should be changed."""
    UNREACHABLE = "unreachable"
    """It gave no answer: nothing else about it could be checked."""
    PROBLEM = "problem"
    """An operator must act."""


class Finding(msgspec.Struct, frozen=True):
    """The result of one check.

    ``participant`` is None if the finding is not about a participant. ``check`` is the name of the check, the
    same for every result. ``what`` is the state; ``why`` says what follows from it and what to do, empty if
    all is well; ``fix`` is the line to copy, None if no single line helps. ``unproved``: the finding advises
    to trust a role only because of names that any role can forge; a caller that can verify these names with
    the ledger keeps or drops the finding.
    """

    participant: str | None
    check: str
    severity: Severity
    what: str
    why: str = ""
    fix: str | None = None
    unproved: bool = False
