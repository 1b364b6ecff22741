"""Paxos, and Paxos Commit on top of it, without IO, clock, threads or randomness.

What enters: requests and answers (``step``), and the driver's reports that something is stored. What leaves:
messages, and :class:`PaxosReady`, which contains everything that an acceptor's driver has to do next. The
same classes run in production, in simulation and in the search of ``tests/models``.

Each branch of a transaction votes *prepared* or *aborted*, and one instance of Paxos decides each vote. If
all instances choose *prepared*, the transaction is committed; if one chooses *aborted*, it is aborted. The
acceptors are the nodes of one configuration, to which the transaction's session is bound permanently. With
one acceptor this is two-phase commit.

The coordinator's duties, in this order:

1. Prepare every branch. As long as one branch is not prepared, make no :class:`FirstBallot`: without it the
   transaction can never commit, and may be rolled back.
2. Make the ``FirstBallot``, once, and send ``messages`` to all acceptors. Repeat them to each acceptor
   that does not answer.
3. Give the answers to ``step``. If the ballot is ``superseded``, or answers are missing, send ``ask``
   repeatedly. No timeout decides anything.
4. Record the ``outcome`` in the ledger, then send it to the branches. If it is ``forgotten``, the ledger
   has the outcome.

A later leader makes a :class:`Recovery` on the acceptors that the ledger names for the session, sends what
``begin`` and ``step`` return, begins again after a random pause, records the ``outcome`` with the
``branches`` in the ledger, and commits or rolls back no other branches.

An acceptor's driver, for every ``ready = acceptor.ready()`` that is not ``empty``:

1. Send ``replies_now``: they do not depend on anything that is not stored yet.
2. Store ``records``, delete ``dropped``, store ``marks``, in one transaction, in the order of the calls to
   ``ready``; then sync. Several ``PaxosReady`` may share a sync, with each other and with the log.
3. After the sync call ``on_persisted(token)`` and send what it returns. Never send ``replies_after_sync``
   directly.

Other duties: call ``forget`` regularly for the transactions whose outcome the ledger has; after a restart
give the acceptor everything that it has stored, under the same number; never start an acceptor whose disk was
lost under its old number. A node leaves the cluster only when every transaction of every session that is
bound to it is decided and recorded in the ledger.

In the order in which a vote passes them:

====================  ========================================================================================
:mod:`.first_ballot`  proposes the votes in ballot 0, for the coordinator, and learns the outcome.
:mod:`.messages`      defines and encodes everything that leaders and acceptors send each other.
:mod:`.acceptor`      ``Acceptor``: takes requests for many transactions, and gives every output in a
                      ``PaxosReady``.
:mod:`.record`        holds the promise and the acceptances of one acceptor for one transaction.
:mod:`.synod`         implements one instance of Paxos: acceptance, proposal, tally.
:mod:`.marks`         holds which transactions were forgotten, so that none of them is decided again.
:mod:`.ready`         defines ``PaxosReady``, and keeps the unfinished writes.
:mod:`.learner`       computes the chosen values and the outcome from acceptances.
:mod:`.recovery`      ``Recovery``: finds the outcome with a higher ballot, for any later leader.
:mod:`.errors`        defines ``PeerMisbehaved``.
====================  ========================================================================================

Sources: Lamport, "The Part-Time Parliament", 1998, and "Paxos Made Simple", 2001; Gray and Lamport,
"Consensus on Transaction Commit", 2006.
"""

from __future__ import annotations

from undoubt.coordinator.paxos.acceptor import Acceptor, RestoredAcceptor
from undoubt.coordinator.paxos.errors import PeerMisbehaved
from undoubt.coordinator.paxos.first_ballot import FirstBallot
from undoubt.coordinator.paxos.learner import Learner
from undoubt.coordinator.paxos.marks import Marks
from undoubt.coordinator.paxos.messages import (
    ABORTED,
    AcceptorReply,
    AcceptorRequest,
    Ask,
    BranchInstance,
    Forgotten,
    Known,
    Phase1a,
    Phase1b,
    Phase2a,
    Phase2b,
    Refused,
    Value,
    decode_reply,
    decode_request,
    encode,
)
from undoubt.coordinator.paxos.ready import Outgoing, PaxosReady
from undoubt.coordinator.paxos.record import AcceptorRecord
from undoubt.coordinator.paxos.recovery import Recovery
from undoubt.coordinator.paxos.synod import FIRST, Accepted, Ballot

__all__ = [
    "ABORTED",
    "FIRST",
    "Accepted",
    "Acceptor",
    "Ask",
    "Ballot",
    "BranchInstance",
    "FirstBallot",
    "Forgotten",
    "Known",
    "Learner",
    "Marks",
    "Outgoing",
    "PeerMisbehaved",
    "Phase1a",
    "Phase1b",
    "Phase2a",
    "Phase2b",
    "PaxosReady",
    "AcceptorRecord",
    "Recovery",
    "Refused",
    "AcceptorReply",
    "AcceptorRequest",
    "RestoredAcceptor",
    "Value",
    "decode_reply",
    "decode_request",
    "encode",
]
