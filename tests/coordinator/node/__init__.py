"""Tests of nodes. Read ``test_node.py`` first: what clients are answered stays true, whichever node dies.

Then the disk (``test_storage.py``, ``test_disk.py``, ``test_lost_disk.py``, ``test_carry_over.py``), members
(``test_members.py``, ``test_roles.py``, ``test_liveness.py``), Paxos Commit (``test_paxos_commit.py``,
``test_acceptor_retirement.py``), upgrades (``test_versions.py``, ``test_upgrade.py``,
``test_tags_upgrade.py``) and hostile bytes (``test_fuzz.py``, ``test_bounds.py``).

=================  ===========================================================================================
:mod:`.cluster`    runs a cluster of nodes in this process, on real TCP and real files, with a clock that
                   tests move.
:mod:`.processes`  runs nodes as separate processes, started as users start them.
:mod:`.full_disk`  makes a node's disk refuse new files.
:mod:`.format_2`   writes the file of a node as version 0.1.0 wrote it.
=================  ===========================================================================================
"""
