"""Tests of ``undoubt relay``: over a real database, with receivers that fail.

================  ============================================================================================
:mod:`.conftest`  makes a database with an outbox, and publishes in it.
================  ============================================================================================
"""
