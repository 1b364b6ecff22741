"""A plugin of pytest for the tests of an application: real databases with its own schema, a ledger, and
crashes at named steps.

Installed with undoubt, pytest finds it by itself. ``pip install 'undoubt[pytest]'`` brings a PostgreSQL
server. The fixtures, in the order in which they need each other::

    undoubt_participants     the names of the databases; ini option ``undoubt_participants``
    undoubt_servers          a server for each of them, or those of ``--undoubt-dsn``
    undoubt_schema           to be overridden: makes the tables of one database, once in a session
    undoubt_databases        new databases for each test, by name: copies with these tables and undoubt's
    undoubt_settings         a configuration over them, with a ledger of their own
    undoubt_config           the same as a file, which ``UNDOUBT_CONFIG`` names during the test
    undoubt_coordinator      a coordinator of ``undoubt.sync``
    crash_at                 runs a function in a process that dies at a step of the commit
    undoubt_recover          resolves what such a process has left

==================  ==========================================================================================
:mod:`.plugin`      declares options and fixtures.
:mod:`.databases`   makes servers, template databases, and their copies.
:mod:`.crash`       runs a function in a process of its own, and kills it at a step.
:mod:`.recover`     runs recovery until nothing is left to do.
==================  ==========================================================================================
"""
