"""Everything about one transaction that travels between its leaders and its acceptors, or is kept.

Frozen values that msgpack can carry (``encode``, ``decode``). An acceptor is a node's number, a positive
integer. Fields may be added at the end with a default: an older node skips them, a newer one fills them in.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import msgspec

from undoubt.coordinator.paxos.synod import Accepted, Ballot
from undoubt.coordinator.quorum import Joint
from undoubt.participants.ids import BRANCH_NUMBER_MAX, TxId

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
EVIDENCE_BYTES_MAX = 10_000


class BranchInstance(msgspec.Struct, frozen=True, array_like=True):
    """One branch of a transaction: one instance of Paxos decides its vote."""

    number: Positive
    participant: Annotated[str, msgspec.Meta(max_length=1_000)]


class Value(msgspec.Struct, frozen=True, array_like=True):
    """What an instance chooses: *prepared* or *aborted*. ``evidence`` goes with a prepared branch; it is the
    caller's, and comes back to whoever learns the outcome."""

    prepared: bool
    evidence: Annotated[bytes, msgspec.Meta(max_length=EVIDENCE_BYTES_MAX)] = b""

    def __str__(self) -> str:
        return "prepared" if self.prepared else "aborted"


ABORTED = Value(False)

_Branches = Annotated[tuple[BranchInstance, ...], msgspec.Meta(max_length=BRANCH_NUMBER_MAX)]
_Values = Annotated[tuple[Value | None, ...], msgspec.Meta(max_length=BRANCH_NUMBER_MAX)]
"""Bounded before any is decoded."""

REST = -1
"""The position of every instance whose branch is not in the list."""


class Known(msgspec.Struct, frozen=True, array_like=True):
    """What one acceptor has accepted of one transaction.

    ``branches`` is the full list of the transaction's branches, by number, or empty if the acceptor has not
    learned it. ``accepted`` has one element for each of them, None where nothing was accepted. ``unnamed``:
    the highest ballot in which it accepted *aborted* for every instance there is, named or not.
    """

    branches: tuple[BranchInstance, ...] = ()
    accepted: tuple[Accepted[Value] | None, ...] = ()
    unnamed: Ballot | None = None

    @property
    def sound(self) -> bool:
        """Whether an acceptor can have got there: a list in order of number, and a place for each of it."""
        numbers = [branch.number for branch in self.branches]
        ordered = all(before < after for before, after in pairwise(numbers))
        return ordered and len(self.accepted) == len(self.branches)

    def instance(self, position: int) -> Accepted[Value] | None:
        """What was accepted for ``branches[position]``, or for :data:`REST`."""
        if 0 <= position < len(self.accepted):
            return self.accepted[position]
        return None if self.unnamed is None else Accepted(self.unnamed, ABORTED)


class PaxosMessage(msgspec.Struct, frozen=True, array_like=True):
    """Of every message: the transaction."""

    txid: TxId


class Phase1a(PaxosMessage, frozen=True, array_like=True, tag=1):
    """Take part in ``ballot``, for every instance of the transaction; ``acceptors`` are all who are asked."""

    acceptors: Joint
    ballot: Ballot


class Phase1b(PaxosMessage, frozen=True, array_like=True, tag=2):
    """``acceptor`` takes part in no ballot lower than ``ballot``, and has accepted what is ``known``."""

    acceptor: Positive
    ballot: Ballot
    known: Known


class Phase2a(PaxosMessage, frozen=True, array_like=True, tag=3):
    """Accept ``values`` in ``ballot``: one for each of ``branches``, None for an instance that is not meant.

    ``branches`` is the full list. Only a leader who cannot know it leaves it empty: then *aborted* is asked
    for in every instance there is.
    """

    acceptors: Joint
    ballot: Ballot
    branches: _Branches = ()
    values: _Values = ()


class Phase2b(PaxosMessage, frozen=True, array_like=True, tag=4):
    """``acceptor`` has accepted what is ``known``. Also the answer to :class:`Ask`."""

    acceptor: Positive
    known: Known


class Refused(PaxosMessage, frozen=True, array_like=True, tag=5):
    """``acceptor`` has promised ``promised``, which is higher than the ballot it was asked for."""

    acceptor: Positive
    promised: Ballot
    known: Known


class Ask(PaxosMessage, frozen=True, array_like=True, tag=6):
    """What have you accepted? Promises nothing and changes nothing."""

    acceptors: Joint


class Forgotten(PaxosMessage, frozen=True, array_like=True, tag=7):
    """The transaction is below the forgotten mark: its outcome is in the ledger, and nothing of it will
    ever be promised or accepted here again."""

    acceptor: Positive


AcceptorRequest = Phase1a | Phase2a | Ask
AcceptorReply = Phase1b | Phase2b | Refused | Forgotten

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_requests: msgspec.msgpack.Decoder[AcceptorRequest] = msgspec.msgpack.Decoder(AcceptorRequest)
_replies: msgspec.msgpack.Decoder[AcceptorReply] = msgspec.msgpack.Decoder(AcceptorReply)


def encode(message: AcceptorRequest | AcceptorReply) -> bytes:
    return _encoder.encode(message)


def decode_request(frame: bytes) -> AcceptorRequest:
    """Raises a ``ValueError`` for anything else: ``msgspec.DecodeError``, or ``UnicodeDecodeError``."""
    return _requests.decode(frame)


def decode_reply(frame: bytes) -> AcceptorReply:
    """Raises a ``ValueError`` for anything else: ``msgspec.DecodeError``, or ``UnicodeDecodeError``."""
    return _replies.decode(frame)
