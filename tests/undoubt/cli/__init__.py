"""Tests of the command line: ``test_root.py`` and ``test_indoubt.py`` first.

================  ============================================================================================
:mod:`.harness`   runs the command as its users do, in a process with a clean environment.
:mod:`.stage`     runs the command in this process, on a ledger and two participants in memory.
:mod:`.conftest`  gives each test that asks for ``stage`` one of its own.
================  ============================================================================================
"""
