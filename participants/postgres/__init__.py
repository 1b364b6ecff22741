"""PostgreSQL behind the contract of :mod:`undoubt.participants.contract`.

What enters: a :class:`~undoubt.participants.settings.ParticipantSettings` and the calls of the contract. What
leaves: votes, settled outcomes, evidence, and the errors of :mod:`undoubt.participants.errors`. Nothing here
knows what a transaction is; it knows branches.

===========================  ==============================================================================
``participant``              puts the pieces together; the one name that others import
``branch``, ``handle``       a branch from BEGIN to COMMIT PREPARED, answer by answer; what it is given
``begin``                    its first round trip: clean up, set up, begin, mark
``settle``                   the second phase, also after a crash and as another role; evidence of a gid
``history``                  which history of its database a transaction id is of
``one_phase``                what became of a plain COMMIT whose answer was lost
``roles``, ``checkup``       who may finish whose branches; what keeps a database from doing its part
``grants``                   the rights that its role needs, as SQL
``in_doubt``, ``waits``      the list of prepared transactions; the edges of the wait graph
``states``                   the rows of three-phase commit
``schema``                   optional tables on the participant's side, and their pruning
``queries.sql``, ``sql``     every statement by name; quoting
``verdicts``                 what an SQLSTATE means
``session_end``              which of the server's timeouts ended a session or a statement
``session``                  what is needed of a driver
``pool``, ``management``     sessions lent to branches; sessions for everything else
``dsn``, ``passfile``        libpq's connection strings, and its password files
``connecting``, ``closing``  opening and closing sessions, whatever the driver; ``drivers`` chooses one
``asyncpg_*``                one driver: dsn, connecting, sending, the application's connection, savepoints
``psycopg_*``                the other: the same, for applications that await and for those that do not
===========================  ==============================================================================

Three things hold everywhere. A session whose state is not known is closed, never used again. An answer
counts only if tag and marker are right and no warning weakens it. And no server in recovery is ever
believed about prepared transactions.
"""

from undoubt.participants.postgres.participant import PostgresParticipant

__all__ = ["PostgresParticipant"]
