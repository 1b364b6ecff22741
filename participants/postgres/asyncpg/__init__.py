"""Sessions with asyncpg, which has asynchronous connections only.

The modules, in the order in which a branch passes them:

====================  ==================================================================================
:mod:`.dsn`           translates a dsn into asyncpg's arguments, or refuses what asyncpg cannot do; reads
                      password files.
:mod:`.connector`     opens a session.
:mod:`.session`       implements the session, and reads the server's reason for ending it.
:mod:`.connection`    gives the application a connection that cannot end the branch; its
                      ``transaction()`` is a savepoint.
====================  ==================================================================================
"""
