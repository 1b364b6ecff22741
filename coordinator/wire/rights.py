"""What the holder of a client's certificate may do.

A certificate says so with a URI of its own among its alternative names: ``undoubt://CLUSTER/may/observe``.
One that names no role is of version 0.1.0, or of somebody's own PKI, and may do all; so does a node's."""

from __future__ import annotations

import enum
from collections.abc import Iterable

SCHEME = "undoubt://"
_KIND = "may"


class Right(enum.IntEnum):
    """Each holds all before it."""

    NOTHING = 0
    """Of a role that this release does not know."""
    OBSERVE = 1
    """Ask what the ledger and the nodes know."""
    TRANSACT = 2
    """Open sessions, decide their transactions, and vote on them: an application."""
    OPERATE = 3
    """Act as an operator: members, leaders, snapshots, backups, what was done otherwise than decided."""

    def __str__(self) -> str:
        return self.name.lower()


ROLES = tuple(str(right) for right in Right if right is not Right.NOTHING)
"""As a certificate spells them."""


def uri_of(cluster: str, right: Right) -> str:
    return f"{SCHEME}{cluster}/{_KIND}/{right}"


def named_right(names: Iterable[str], cluster: str) -> Right | None:
    """Of the ``names`` of a client's certificate: the highest role that one gives; None if none is named."""
    prefix = f"{SCHEME}{cluster}/{_KIND}/"
    roles = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not roles:
        return None
    return max(Right[role.upper()] if role in ROLES else Right.NOTHING for role in roles)


def right_of(names: Iterable[str], cluster: str) -> Right:
    """Of the holder of a certificate with these ``names``."""
    listed = list(names)
    if any(name.startswith(f"{SCHEME}{cluster}/node/") for name in listed):
        return Right.OPERATE
    found = named_right(listed, cluster)
    return Right.OPERATE if found is None else found
