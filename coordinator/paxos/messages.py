"""Everything about one transaction that its leaders and acceptors send each other, or store.

Frozen values that msgpack can carry (``encode``, ``decode``). An acceptor is a node's number, a positive
integer. Fields may be added at the end with a default: an older node ignores them, and a newer node uses the
default if they are missing.
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
    """The value of an instance: *prepared* or *aborted*. ``evidence`` comes with a prepared branch from the
    caller, and is returned with the outcome."""

    prepared: bool
    evidence: Annotated[bytes, msgspec.Meta(max_length=EVIDENCE_BYTES_MAX)] = b""

    def __str__(self) -> str:
        return "prepared" if self.prepared else "aborted"


ABORTED = Value(False)

_Branches = Annotated[tuple[BranchInstance, ...], msgspec.Meta(max_length=BRANCH_NUMBER_MAX)]
_Values = Annotated[tuple[Value | None, ...], msgspec.Meta(max_length=BRANCH_NUMBER_MAX)]
"""Lists whose length is checked before their elements are decoded."""

REST = -1
"""The position of every instance whose branch is not in the list."""


class Known(msgspec.Struct, frozen=True, array_like=True):
    """What one acceptor has accepted for one transaction.

    ``branches`` is the full list of the transaction's branches, by number, or empty if the acceptor has not
    learned it. ``accepted`` has one element for each of them, None where nothing was accepted. ``unnamed``:
    the highest ballot in which the acceptor has accepted *aborted* for all instances, in the list or not.
    """

    branches: tuple[BranchInstance, ...] = ()
    accepted: tuple[Accepted[Value] | None, ...] = ()
    unnamed: Ballot | None = None

    @property
    def sound(self) -> bool:
        """Whether this is valid: the list is in order of number, and ``accepted`` has an element for each
        branch."""
        numbers = [branch.number for branch in self.branches]
        ordered = all(before < after for before, after in pairwise(numbers))
        return ordered and len(self.accepted) == len(self.branches)

    def instance(self, position: int) -> Accepted[Value] | None:
        """The acceptance for ``branches[position]``, or for :data:`REST`; None if nothing was accepted."""
        if 0 <= position < len(self.accepted):
            return self.accepted[position]
        return None if self.unnamed is None else Accepted(self.unnamed, ABORTED)


class PaxosMessage(msgspec.Struct, frozen=True, array_like=True):
    """The field of every message: the transaction."""

    txid: TxId


class Phase1a(PaxosMessage, frozen=True, array_like=True, tag=1):
    """Asks an acceptor to take part in ``ballot``, for every instance of the transaction. ``acceptors`` are
    all acceptors of the transaction."""

    acceptors: Joint
    ballot: Ballot


class Phase1b(PaxosMessage, frozen=True, array_like=True, tag=2):
    """The promise of ``acceptor`` to take part in no ballot lower than ``ballot``; it has accepted
    ``known``."""

    acceptor: Positive
    ballot: Ballot
    known: Known


class Phase2a(PaxosMessage, frozen=True, array_like=True, tag=3):
    """Asks an acceptor to accept ``values`` in ``ballot``: one for each of ``branches``, None for an instance
    that does not change.

    ``branches`` is the full list. Only a leader that cannot know the list leaves it empty: then the message
    asks for *aborted* in all instances.
    """

    acceptors: Joint
    ballot: Ballot
    branches: _Branches = ()
    values: _Values = ()


class Phase2b(PaxosMessage, frozen=True, array_like=True, tag=4):
    """Reports that ``acceptor`` has accepted ``known``. Also the answer to :class:`Ask`."""

    acceptor: Positive
    known: Known


class Refused(PaxosMessage, frozen=True, array_like=True, tag=5):
    """Reports that ``acceptor`` has promised ``promised``, which is higher than the ballot of the request."""

    acceptor: Positive
    promised: Ballot
    known: Known


class Ask(PaxosMessage, frozen=True, array_like=True, tag=6):
    """Asks an acceptor what it has accepted, without changing anything."""

    acceptors: Joint


class Forgotten(PaxosMessage, frozen=True, array_like=True, tag=7):
    """Reports that the transaction is below the mark of ``acceptor``: the ledger has its outcome if there is
    one, and this acceptor will never promise or accept anything for it."""

    acceptor: Positive


AcceptorRequest = Phase1a | Phase2a | Ask
AcceptorReply = Phase1b | Phase2b | Refused | Forgotten

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_requests: msgspec.msgpack.Decoder[AcceptorRequest] = msgspec.msgpack.Decoder(AcceptorRequest)
_replies: msgspec.msgpack.Decoder[AcceptorReply] = msgspec.msgpack.Decoder(AcceptorReply)


def encode(message: AcceptorRequest | AcceptorReply) -> bytes:
    return _encoder.encode(message)


def decode_request(frame: bytes) -> AcceptorRequest:
    """Decode a request. Raises a ``ValueError`` if ``frame`` is not one: ``msgspec.DecodeError``, or
    ``UnicodeDecodeError``."""
    return _requests.decode(frame)


def decode_reply(frame: bytes) -> AcceptorReply:
    """Decode a reply. Raises a ``ValueError`` if ``frame`` is not one: ``msgspec.DecodeError``, or
    ``UnicodeDecodeError``."""
    return _replies.decode(frame)
