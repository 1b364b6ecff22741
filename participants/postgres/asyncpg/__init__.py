"""Sessions with asyncpg, which has asynchronous connections only.

The modules, in the order in which a branch passes them:

====================  ==================================================================================
:mod:`.dsn`           translates a dsn into asyncpg's arguments, or refuses what asyncpg cannot do; reads
                      password files.
:mod:`.connector`     opens a session.
:mod:`.session`       implements the session.
:mod:`.line`          stands between asyncpg and its transport, and lends the connection to undoubt's own
                      pipelined statements between two calls of the application.
:mod:`.wire`          reads the errors and notices of the server.
:mod:`.connection`    gives the application a connection that cannot end the branch; its
                      ``transaction()`` is a savepoint.
====================  ==================================================================================
"""
