"""Tests of the sidecar as its clients use it: a process, over its unix socket and TCP, with real databases.

================  ============================================================================================
:mod:`.conftest`  starts one sidecar on a SQLite ledger, with accounts in each database.
:mod:`.stage`     starts a sidecar in front of two databases.
:mod:`.pair`      starts two sidecars of two services, on one ledger.
================  ============================================================================================
"""
