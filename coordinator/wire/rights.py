"""The right that a client's certificate gives to its holder.

A certificate names the role by a URI among its alternative names: ``undoubt://CLUSTER/may/observe``. A
certificate without a role (made by version 0.1.0, or by another PKI) gives all rights; so does a certificate
of a node."""

from __future__ import annotations

import enum
from collections.abc import Iterable

SCHEME = "undoubt://"
_KIND = "may"


class Right(enum.IntEnum):
    """The rights of a client. Each includes all rights before it."""

    NOTHING = 0
    """No right: the certificate has only a role that this release does not know."""
    OBSERVE = 1
    """Read the state of the ledger and of the nodes."""
    TRANSACT = 2
    """Open sessions, decide their transactions, and vote on them: what an application needs."""
    OPERATE = 3
    """Act as an operator: members, leaders, snapshots, backups, heuristic outcomes."""

    def __str__(self) -> str:
        return self.name.lower()


ROLES = tuple(str(right) for right in Right if right is not Right.NOTHING)
"""The names of the roles in certificates."""


def uri_of(cluster: str, right: Right) -> str:
    return f"{SCHEME}{cluster}/{_KIND}/{right}"


def named_right(names: Iterable[str], cluster: str) -> Right | None:
    """The highest role among the ``names`` of a client's certificate; None if it names no role."""
    prefix = f"{SCHEME}{cluster}/{_KIND}/"
    roles = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not roles:
        return None
    return max(Right[role.upper()] if role in ROLES else Right.NOTHING for role in roles)


def right_of(names: Iterable[str], cluster: str) -> Right:
    """The right of the holder of a certificate with these ``names``."""
    listed = list(names)
    if any(name.startswith(f"{SCHEME}{cluster}/node/") for name in listed):
        return Right.OPERATE
    found = named_right(listed, cluster)
    return Right.OPERATE if found is None else found
