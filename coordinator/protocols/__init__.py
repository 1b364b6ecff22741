"""Commit protocols: plain async functions over the contracts of ledger and participants.

``course.py`` is what a protocol is given and what its caller watches, ``voting.py`` the first phase,
``two_phase.py`` two-phase commit, ``paxos_commit.py`` Paxos Commit, ``steps.py`` the places where a process
can die on the way.
"""
