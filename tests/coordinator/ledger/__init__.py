"""Tests of the ledgers. ``test_conformance.py`` is the contract: read it first; every ledger must pass it.

Then the state machine (``test_machine_properties.py``, ``test_group_commit.py``), arguments and answers that
are wrong (``test_bad_*.py``, ``test_bounds.py``), the SQLite ledger (``test_sqlite.py``,
``test_set_back.py``, ``test_removed_files.py``), the PostgreSQL ledger (``test_postgres*.py``) and the ledger
in etcd (``test_etcd*.py``), and moves between all of them (``test_move*.py``).

======================  ======================================================================================
:mod:`.conftest`        lists the ledgers that the conformance suite runs on.
:mod:`.signing`         adds the tags that callers leave out to the names of branches.
:mod:`.postgres_stage`  opens PostgreSQL ledgers, and holds their statements.
:mod:`.etcd_stage`      opens ledgers in etcd, loses their answers, and repeats their requests late.
:mod:`.move_stage`      makes places for ledgers, and a ledger with a record of every kind.
======================  ======================================================================================
"""
