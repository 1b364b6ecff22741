"""PostgreSQL behind the contract of :mod:`undoubt.participants.contract`.

What enters: a :class:`~undoubt.participants.settings.ParticipantSettings` and the calls of the contract. What
leaves: votes, results of second phases, evidence, and the errors of :mod:`undoubt.participants.errors`. This
room handles branches, not transactions.

Three rules hold in every module. A session whose state is not known is closed, never used again. An answer
counts only if its tag and the marker are right and no warning weakens it. A server in recovery is not
believed about prepared transactions.

The modules that both drivers share import neither of the packages ``asyncpg`` and ``psycopg`` below, and
neither of these imports the other; a driver is imported when a participant that uses it is made.

The modules, in the order in which a branch passes them:

========================  ====================================================================================
:mod:`.participant`       implements ``Participant`` with the modules below, and chooses the driver; other
                          rooms import only this module's class.
:mod:`.pool`              lends sessions to branches, and closes each session whose state is not known.
:mod:`.connecting`        opens a session with either driver: dsn, password, identity of the server.
:mod:`.dsn`               reads a dsn with libpq's parser, and completes it.
:mod:`.dsn_form`          explains why libpq cannot read a dsn, without its secrets.
:mod:`.dsn_values`        judges the values of a completed dsn, before a driver gets them.
:mod:`.asyncpg`           implements sessions and the application's connections with asyncpg.
:mod:`.psycopg`           implements sessions and the application's connections with psycopg.
:mod:`.on_connect`        runs the application's hook on each new connection.
:mod:`.session`           declares what this room requires of a driver's session, and closes sessions in the
                          background.
:mod:`.session_setup`     builds the first round trip of a branch: clean up, set up, begin, mark.
:mod:`.guard`             builds the scripts that guard the end of a branch, and reads the report of PREPARE;
                          asks whether the standbys have confirmed a COMMIT behind a pooler.
:mod:`.pipeline`          builds the same round trips as steps of pipelines, for sessions that can send these.
:mod:`.connection_proxy`  declares the application's side of a branch, and has the code that both drivers'
                          connections share.
:mod:`.tags`              judges whether an application has left something in its session.
:mod:`.branch`            implements ``Branch``: poll, prepare, commit in one phase, commit, roll back;
                          builds these round trips, and reads their answers.
:mod:`.branch_context`    declares what a branch uses of its participant.
:mod:`.end_prepared`      sends COMMIT PREPARED or ROLLBACK PREPARED in one session, and judges the answer.
:mod:`.announced`         implements ``Branch`` for a branch that another program runs and prepares.
:mod:`.roles`             computes which role may finish which branches, and the rights that undoubt's role
                          needs.
:mod:`.history`           identifies the history of a database in which a transaction id is valid.
:mod:`.settle`            ends a prepared branch where its own session cannot, after a crash or as another
                          role; and reads evidence.
:mod:`.timelines`         reads from which histories a promoted server comes.
:mod:`.settle_each`       ends many prepared branches, several at once in each session, for recovery.
:mod:`.one_phase`         finds out whether a plain COMMIT happened whose answer was lost.
:mod:`.admin_pool`        runs statements outside branches, on separate sessions.
:mod:`.in_doubt`          lists prepared transactions.
:mod:`.waits`             reads the edges of the wait graph, and cancels a waiting statement.
:mod:`.three_phase`       implements the rows of three-phase commit.
:mod:`.last_agent`        writes the row of last-agent commit with its COMMIT, writes tombstones, and reads
                          rows.
:mod:`.outbox`            writes a message in a branch, and reads and removes messages for a relay.
:mod:`.schema_check`      checks schema ``undoubt`` before it is used.
:mod:`.schema`            creates, upgrades and prunes the tables of schema ``undoubt``.
:mod:`.checkup`           checks what keeps a database from taking part in transactions.
:mod:`.sql`               holds the statements of ``queries.sql``.
:mod:`.sqlstate`          translates SQLSTATEs into errors and advice, and names the timeout behind them.
========================  ====================================================================================
"""

from undoubt.participants.postgres.participant import PostgresParticipant

__all__ = ["PostgresParticipant"]
