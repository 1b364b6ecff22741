"""Tests of the coordinator: its protocols, its ledgers, and what they stand on.

Read ``test_two_phase.py`` first, then ``test_three_phase.py`` and ``test_termination.py``: a coordinator over
scripted participants. ``test_states.py`` tests the tables of states, ``test_formats.py`` that stored and sent
formats stay. The rooms below it are in the order of :mod:`undoubt.coordinator`:

======================  ======================================================================================
:mod:`.stage`           runs a coordinator over scripted participants and a ledger in memory that notes the
                        order of calls.
:mod:`.voting_ledger`   is a ledger in memory with acceptors in memory, for Paxos Commit.
:mod:`.costs`           counts messages and durable writes of one committed transaction.
:mod:`.format_samples`  makes samples of everything that a message type can hold.
:mod:`.formats`         writes ``formats.txt``: everything that is stored or sent, as samples.
:mod:`.ledger`          tests all ledgers with one conformance suite, and each with tests of its files or
                        tables.
:mod:`.node`            tests nodes on real TCP and real files: storage, membership, upgrades, lost disks.
:mod:`.wire`            tests handshake, framing, TLS and versions on real sockets.
:mod:`.raft`            tests the Raft core without IO, section by section of its papers, and in seeded runs.
:mod:`.paxos`           tests acceptors and leaders of Paxos Commit without IO, and in seeded runs.
:mod:`.quorum`          tests majorities with the cases of etcd-io/raft.
======================  ======================================================================================
"""
