"""Tests of recovery and of what operators do.

Read ``test_plan.py`` and ``test_service.py`` first: what is done with a prepared branch, and when. Then
hazards, impostors, deadlocks across databases, and the operator's tools (``test_operator.py``,
``test_whole.py``).

=============  ===============================================================================================
:mod:`.world`  holds two databases and a ledger in memory, with transactions that were left behind.
=============  ===============================================================================================
"""
