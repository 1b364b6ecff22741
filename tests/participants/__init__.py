"""Tests of participants on real PostgreSQL servers, with both drivers.

Read ``test_prepare.py`` and ``test_settle.py`` first: the life of a branch, and the end of one in doubt. Then
what may be lost (``test_lost.py``, ``test_one_phase_lost.py``, ``test_unconfirmed.py``), poolers
(``test_pooler.py``), roles and forged names (``test_owners.py``, ``test_roles.py``, ``test_belief.py``,
``test_claims.py``), and connections (``test_dsn.py``, ``test_connecting.py``, ``test_pool.py``).

================  ============================================================================================
:mod:`.conftest`  starts one server for the room, and makes a database for every test.
:mod:`.support`   makes participants, gids and tables.
:mod:`.hands`     gives the application's connection of a branch one interface, whatever the driver.
:mod:`.proxy`     is a wire between client and server that a test can freeze or cut.
:mod:`.scene`     makes a database in which a thief knows every name that was ever prepared.
================  ============================================================================================
"""
