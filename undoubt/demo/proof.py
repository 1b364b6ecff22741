"""What the demo proves, as one object whose keys scripts may rely on."""

from __future__ import annotations

import msgspec


class Kills(msgspec.Struct):
    """Processes that SIGKILL ended, and at the step that was meant."""

    coordinator_before_decision: int = 0
    coordinator_after_decision: int = 0
    database: int = 0
    leader: int | msgspec.UnsetType = msgspec.UNSET
    """Where the ledger is a cluster."""


class Resolved(msgspec.Struct):
    """In-doubt branches that recovery finished."""

    committed: int = 0
    rolled_back: int = 0


class Proof(msgspec.Struct):
    """``transactions`` were begun; each is one of ``committed``, found in both databases at the end, and
    ``aborted``, found in neither. ``acknowledged_lost`` counts those that the application was told are
    committed and that are missing anywhere. ``in_doubt_…`` count prepared branches in both databases."""

    ok: bool = False
    transactions: int = 0
    committed: int = 0
    aborted: int = 0
    acknowledged_lost: int = 0
    in_doubt_after_crash: int = 0
    in_doubt_after_recovery: int = 0
    money_before: int = 0
    money_after: int = 0
    kills: Kills = msgspec.field(default_factory=Kills)
    resolved: Resolved = msgspec.field(default_factory=Resolved)
