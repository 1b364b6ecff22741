"""Tests of the Raft core. ``test_paper.py`` and ``test_thesis.py`` follow the sections of the paper and the
thesis: read them first. ``test_membership.py`` and ``test_snapshots.py`` add what the papers leave open,
``test_known_bugs.py`` the errors of other implementations, ``test_simulation.py`` seeded runs.

==================  ==========================================================================================
:mod:`.bench`       holds one node: messages go in one by one, and what it sends is looked at.
:mod:`.network`     runs a cluster in memory, with a seeded network and disks that lose what was not synced.
:mod:`.invariants`  checks what must hold after every step. Shares no code with what it checks.
:mod:`.simulation`  makes one seeded run: random steps under faults, then a time without faults.
:mod:`.scenario`    plays the stories of :mod:`tests.scenarios` that are about Raft.
==================  ==========================================================================================
"""
