"""Tests of the documentation: its examples run (``test_examples.py``, ``test_framework_examples.py``), also
in trouble (``test_leader_election.py``), its tables and defaults are those of the code (``test_pages.py``),
its diagrams are the tables of states (``test_protocols.py``), and the runbook is complete
(``test_runbook.py``).

================  ============================================================================================
:mod:`.pages`     finds the blocks of code in a page.
:mod:`.conftest`  makes two databases with the tables of the README.
================  ============================================================================================
"""
