"""What the core refuses.

::

    UndoubtError
    ├── RaftRefusal
    │   ├── NotLeader        ask ``leader`` (0: nobody is known to lead)
    │   ├── ProposalRefused  this leader takes no entries now; ``reason`` says why
    │   └── ConfigRefused    that change of the configuration is impossible, or comes too early
    ├── LogSetBack           this node has acknowledged what its log does not hold any more
    └── MessageRefused       a peer has sent what no sound member would
"""

from __future__ import annotations

import enum

from undoubt.participants.errors import UndoubtError


class RaftRefusal(UndoubtError):
    """Nothing was appended and nothing will happen: it is safe to ask again, here or elsewhere."""


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
    """A leader has this node's acknowledgement of more than its log holds: its disk was set back. It must
    neither vote nor acknowledge anything any more."""


class MessageRefused(UndoubtError):
    """A peer has sent what no sound member would. It was not looked at any further, and changed nothing."""


class ConfigRefused(RaftRefusal):
    """The message names the change and why it cannot be."""
