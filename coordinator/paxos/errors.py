"""The error of Paxos.

::

    UndoubtError
    └── PeerMisbehaved   another process broke the protocol; nothing was changed
"""

from __future__ import annotations

from undoubt.participants.errors import UndoubtError


class PeerMisbehaved(UndoubtError):
    """A message was received that cannot come from a process that follows the protocol: a ballot used for two
    values, another list of branches, another set of acceptors. Nothing was changed. The caller has to log the
    error and close the connection of the peer."""
