"""The result of the demo, as an object whose keys scripts may rely on."""

from __future__ import annotations

import msgspec


class Kills(msgspec.Struct):
    """How many processes SIGKILL ended at the intended step."""

    coordinator_before_decision: int = 0
    coordinator_after_decision: int = 0
    database: int = 0
    leader: int | msgspec.UnsetType = msgspec.UNSET
    """Set if the ledger is a cluster."""


class Resolved(msgspec.Struct):
    """How many in-doubt branches recovery finished."""

    committed: int = 0
    rolled_back: int = 0


class Proof(msgspec.Struct):
    """The result of the demo. ``transactions`` were begun: ``committed`` of them are in both databases at the
    end, ``aborted`` are not. ``acknowledged_lost`` counts the transactions whose commit returned
    successfully and that are missing in a database. ``in_doubt_…`` count the prepared branches of both
    databases."""

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
