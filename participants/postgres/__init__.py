"""PostgreSQL behind the contract of :mod:`undoubt.participants.contract`.

What enters: a :class:`~undoubt.participants.settings.ParticipantSettings` and the calls of the contract. What
leaves: votes, settled outcomes, evidence, and the errors of :mod:`undoubt.participants.errors`. This room
knows branches, and no transactions.

Three rules hold in every module. A session whose state is not known is closed, never used again. An answer
counts only if its tag and the marker are right and no warning weakens it. A server in recovery is not
believed about prepared transactions.

In the order in which a branch passes them:

==========================  ==================================================================================
:mod:`.participant`         implements ``Participant`` with the modules below; the one name that others
                            import.
:mod:`.pool`                lends sessions to branches, and closes each session whose state is not known.
:mod:`.drivers`             chooses the driver, and imports it.
:mod:`.connecting`          opens a session, whatever the driver: dsn, password, who the server is.
:mod:`.dsn`                 reads a dsn with libpq's parser, and completes it.
:mod:`.passfile`            reads password files.
:mod:`.asyncpg_dsn`         translates a dsn into asyncpg's arguments, or refuses what asyncpg cannot do.
:mod:`.asyncpg_connect`     opens a session with asyncpg.
:mod:`.psycopg_connect`     opens a session with psycopg.
:mod:`.on_connect`          runs the application's hook on each new connection.
:mod:`.session`             declares what this room requires of a driver's session.
:mod:`.asyncpg_session`     implements the session over asyncpg.
:mod:`.psycopg_session`     implements the session over psycopg's libpq connection.
:mod:`.session_setup`       builds the first round trip of a branch: clean up, set up, begin, mark.
:mod:`.branch`              implements ``Branch``: poll, prepare, commit in one phase, commit, roll back.
:mod:`.connection_proxy`    declares the application's side of a branch.
:mod:`.asyncpg_connection`  gives the application an asyncpg connection that cannot end the branch.
:mod:`.asyncpg_savepoint`   implements ``connection.transaction()`` of asyncpg as a savepoint.
:mod:`.psycopg_connection`  gives the application a psycopg connection that cannot end the branch.
:mod:`.psycopg_gate`        replaces the lock of psycopg's connection, and keeps the application out after the
                            branch's end.
:mod:`.roles`               computes who may finish whose branches.
:mod:`.history`             identifies the history of a database in which a transaction id is valid.
:mod:`.settle`              sends COMMIT PREPARED or ROLLBACK PREPARED, also after a crash and as another
                            role, and reads evidence.
:mod:`.one_phase`           finds out whether a plain COMMIT happened whose answer was lost.
:mod:`.admin_pool`          runs statements outside branches on sessions of its own.
:mod:`.in_doubt`            lists prepared transactions.
:mod:`.waits`               reads the edges of the wait graph, and cancels a waiting statement.
:mod:`.three_phase`         implements the rows of three-phase commit.
:mod:`.belief`              checks schema ``undoubt`` before it is used.
:mod:`.schema`              creates, upgrades and prunes the tables of schema ``undoubt``.
:mod:`.checkup`             checks what keeps a database from taking part.
:mod:`.grants`              computes the rights that undoubt's role needs, as SQL.
:mod:`.sql`                 loads the statements of ``queries.sql``, and fills in literals.
:mod:`.sqlstate`            translates SQLSTATEs into errors and advice.
:mod:`.session_end`         finds out which of the server's timeouts ended a session or a statement.
:mod:`.psycopg_closing`     cancels what runs in a libpq connection, and closes it.
:mod:`.closing`             closes sessions in the background.
==========================  ==================================================================================
"""

from undoubt.participants.postgres.participant import PostgresParticipant

__all__ = ["PostgresParticipant"]
