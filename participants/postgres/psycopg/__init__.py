"""Sessions with psycopg, for asynchronous and for synchronous applications.

The modules, in the order in which a branch passes them:

====================  ==================================================================================
:mod:`.connector`     opens a session, and lends its libpq connection to the applications of branches.
:mod:`.session`       implements the session over psycopg's libpq connection, and closes it.
:mod:`.sync_each`     sends several statements of the engine without waiting, each with its own Sync.
:mod:`.pipeline`      sends undoubt's own statements in libpq's pipeline mode.
:mod:`.polling`       waits for libpq's socket with callbacks of the event loop.
:mod:`.connection`    gives the application an asynchronous or synchronous connection that cannot end the
                      branch.
:mod:`.gate`          replaces the connection's lock, and refuses the application's use after the end of
                      the branch.
====================  ==================================================================================
"""
