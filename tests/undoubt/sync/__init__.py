"""Tests of the synchronous API: ``test_transactions.py`` first, then how programs end (``test_ends.py``).

================  ============================================================================================
:mod:`.support`   runs a synchronous coordinator over scripted participants, with gates that stop it.
:mod:`.programs`  holds the programs whose ends are tested.
================  ============================================================================================
"""
