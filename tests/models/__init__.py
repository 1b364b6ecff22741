"""Models: every reachable state of a protocol at small bounds, searched breadth first.

What enters: a model, which is a first state and the steps that lead on from any state. What leaves: how many
states there are, how deep the search went, and the shortest way to a state in which something is wrong.

======================  ======================================================================================
:mod:`.search`          the search: any hashable states
:mod:`.rules`           models written as rules over facts, each fact a bit of an integer
:mod:`.transaction`     the specifications TCommit and TwoPhase
:mod:`.paxos_commit`    the specification PaxosCommit
:mod:`.processes`       models made of the product's own objects, which send each other messages
:mod:`.our_paxos`       our acceptors and leaders: coordinator.paxos itself
:mod:`.three_phase`     three-phase commit, ended by Skeen's termination or by a quorum's
:mod:`.last_agent`      last-agent commit: a row and a tombstone under one key, a standby, a failover
======================  ======================================================================================

The specifications are those of Gray and Lamport, "Consensus on Transaction Commit", 2006, appendix, as
published with TLA+'s examples; the numbers of their states are published there too, so that a rule that is
left out, or is too strict, shows as a wrong number. ``make models`` runs one model from the command line.
"""
