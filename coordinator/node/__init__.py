"""A node: one member of the cluster that keeps the ledger, with its disk, its port and its timers.

What enters: a :class:`~undoubt.coordinator.node.storage.contract.Storage`, addresses, and the connections of
peers and clients. What leaves: answers of the ledger's contract, each durable on a majority before it is
given.

In the order in which a call of a client passes them:

===========================  =================================================================================
:mod:`.settings`             holds the settings of a node.
:mod:`.bootstrap`            computes the first contents of a node's disk: for a new cluster, from a backup,
                             or for an added node.
:mod:`.node`                 starts and stops the parts below, and accepts connections.
:mod:`.clients`              reads the calls of one client, proposes decisions immediately, and sends the
                             answers in frames.
:mod:`.admin`                carries out an operator's calls: status, members, leader, snapshot, backup.
:mod:`.status`               computes what a node reports about itself.
:mod:`.ledger`               implements the ledger's contract by proposing commands, and expires sessions
                             while the node leads.
:mod:`.replica`              connects the consensus core, its driver, the disk and the waiting callers.
:mod:`.proposals`            makes one entry of the commands of one turn, and answers each command once it is
                             applied.
:mod:`.read_index`           holds reads back until the leader has confirmed its term and applied its commit
                             index.
:mod:`.driver`               drives the consensus core: does what each ``Ready`` says.
:mod:`.peers`                sends Raft's messages to each other node over one connection, and receives
                             theirs.
:mod:`.versions`             decides which version of the protocol all members support; no newer command
                             enters the log.
:mod:`.storage`              stores log, term, vote, acceptor records and snapshots on the disk.
:mod:`.fsm`                  applies the entries of the log: the ledger's commands, the nodes' addresses, the
                             agreed version; computes a hash of the state at fixed places of the log.
:mod:`.divergence`           compares these hashes with the other nodes', and stops a node whose hash differs
                             from the majority's.
:mod:`.snapshots`            makes snapshots of the state machine, stores them with the history, sends them in
                             chunks, and installs received snapshots.
:mod:`.acceptors`            drives the node's Paxos Commit acceptor, whose records share the log's syncs.
:mod:`.orphaned_votes`       finds transactions of ended sessions that only the acceptors have, and records
                             their outcomes in the ledger.
:mod:`.acceptor_retirement`  decides when a node may leave: once every session has a majority of its acceptors
                             without it.
:mod:`.errors`               defines ``NotLeading`` and ``NodeStopped``.
===========================  =================================================================================

The duties of the process that runs a node, in order: open the storage; start the node; end the process when
``failed`` is done; run recovery while ``ledger.leads``; stop the node. All time is the event loop's, all
randomness that of the ``Random`` that was given, and only the storage has a thread. So the same code runs in
a simulation.

No call is answered before its entry is committed and applied. A proposal that may have been lost is answered
with ``NotLeading``, and its client repeats it: every call may be repeated, ``open_session`` by its nonce.
"""
