"""What goes wrong in Paxos.

::

    UndoubtError
    └── PeerMisbehaved   another process broke the protocol; nothing was done on its word
"""

from __future__ import annotations

from undoubt.participants.errors import UndoubtError


class PeerMisbehaved(UndoubtError):
    """What was received cannot come from a process that follows the protocol: a ballot used for two values,
    another list of branches, another set of acceptors. Nothing was changed. Log it and cut the peer off."""
