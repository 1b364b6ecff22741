"""The errors of the consensus core.

::

    UndoubtError
    ├── RaftRefusal
    │   ├── NotLeader        this node does not lead; ask ``leader`` (0: not known)
    │   ├── ProposalRefused  this leader takes no entries now; ``reason`` says why
    │   └── ConfigRefused    that change of the configuration is impossible, or comes too early
    ├── LogSetBack           this node has acknowledged entries that its log no longer has
    └── MessageRefused       a peer has sent a message that no correct member sends
"""

from __future__ import annotations

import enum

from undoubt.participants.errors import UndoubtError


class RaftRefusal(UndoubtError):
    """Nothing was appended and nothing will be: the call may be repeated, on this node or another."""


class NotLeader(RaftRefusal):
    def __init__(self, leader: int) -> None:
        super().__init__(f"not the leader; the leader is {leader or 'unknown'}")
        self.leader = leader


class Refusal(enum.Enum):
    DISK_FULL = "the disk is full"
    TRANSFERRING = "leadership is being transferred"
    BUSY = "too much is uncommitted"


class ProposalRefused(RaftRefusal):
    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


class LogSetBack(UndoubtError):
    """A leader has this node's acknowledgement of entries that its log does not have: its disk was set back.
    From now on this node must neither vote nor acknowledge anything."""


class MessageRefused(UndoubtError):
    """A peer has sent a message that no correct member sends. The message was dropped, and nothing was
    changed."""


class ConfigRefused(RaftRefusal):
    """A change of the configuration, or a transfer of leadership, was refused; the message says why."""
