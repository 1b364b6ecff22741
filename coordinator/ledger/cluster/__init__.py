"""``raft://a:7400,b:7400,c:7400``: the client of a ledger that a cluster of nodes keeps.

What enters: the calls of :mod:`undoubt.coordinator.ledger.contract`. What leaves: the answers of the node
that leads the cluster.

In the order in which a call passes them:

=======================  =====================================================================================
:mod:`.url`              reads the addresses and the TLS files of a ``raft://`` URL.
:mod:`.ledger`           implements the contract: it finds the leader, sends the waiting calls in one frame,
                         and sends unanswered calls again to the next leader.
:mod:`.messages`         defines and encodes the messages between clients and nodes.
:mod:`.acceptors`        leads Paxos Commit: it asks the acceptors of a session until the outcome of a
                         transaction is known.
:mod:`.acceptor_client`  sends requests to acceptors, over one connection to each.
:mod:`.status`           sends a call to one given node, and asks all nodes for their status, whether or not
                         one leads.
:mod:`.admin`            changes the members and the leader, and fetches snapshots and backups, for an
                         operator.
=======================  =====================================================================================

A call is repeated until its deadline, at the node that leads at that time. All calls may be repeated
(``open_session`` is recognized by its nonce). After the deadline the caller gets ``LedgerUnavailable``: the
call may have been recorded.
"""
