"""Tests of Paxos Commit without IO: ``test_synod.py`` (one decision), ``test_acceptor.py``,
``test_paxos_commit.py`` (leaders), and ``test_simulation.py`` (seeded runs, and planted errors that they
find).

=====================  =======================================================================================
:mod:`.synod_network`  decides one value among acceptors with slow disks, over a network that loses and
                       repeats.
:mod:`.network`        holds acceptors with slow disks, and leaders of transactions, in memory.
:mod:`.simulation`     makes one seeded run of many transactions and recoveries.
:mod:`.broken`         holds acceptors and leaders with one planted error each.
=====================  =======================================================================================
"""
