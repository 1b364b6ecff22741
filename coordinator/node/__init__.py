"""A node: one member of the cluster that keeps the ledger, with its disk, its port and its timers.

What enters: a :class:`~undoubt.coordinator.node.storage.contract.Storage`, addresses, peers' and clients'
connections. What leaves: answers of the ledger's contract, each durable on a majority before it is given.
From the outside inwards:

===================  =====================================================================================
:mod:`.node`         puts the others together: ``Node.start``, ``stop``
:mod:`.clients`      a client's connection: requests in, answers out, many in a frame
:mod:`.operator`     what an operator asks for: members, transfer, snapshot, backup
:mod:`.ledger`       the ledger's contract on the replica; what a leader does now and then
:mod:`.peers`        connections to and from the other nodes
:mod:`.replica`      drives :mod:`undoubt.coordinator.raft`: turns of the loop, proposals, applying; with
                     :mod:`.reads`, :mod:`.snapshots` and :mod:`.history`
:mod:`.versions`     what the members speak, and have agreed on: nothing newer gets into the log
:mod:`.acceptors`    Paxos Commit's acceptor, on the same disk; :mod:`.settling` records what ended sessions
                     left there, :mod:`.release` lets acceptors go
:mod:`.hashes`       of the state at fixed places of the log; :mod:`.comparing` asks the others for theirs,
and
                     stops a node that has another one than a majority
:mod:`.replicated`   what the log drives: the ledger's machine, the nodes' addresses, the agreed version
:mod:`.storage`      a node's disk: its contract, group commit, and the files
:mod:`.bootstrap`    what a node begins with: new, from a backup, or added
===================  =====================================================================================

The duties of whoever runs one, in order: open the storage; start it; end the process when ``failed`` is
done; run what belongs to a leader (recovery) while ``ledger.leads``; stop it. All time is the event loop's,
all chance the ``Random`` that was given, and only the storage may have a thread: so the same node runs in a
simulation.

Nothing is answered before its entry is committed and applied. A proposal that may have been lost is
answered with ``NotLeading``, and is asked again: every call may be repeated, ``open_session`` by its nonce.
"""
