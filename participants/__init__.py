"""Participants: the databases that take part in a transaction, and the values that all rooms share.

What enters: a gid, and what to do with that branch. What leaves: a vote, what became of the branch, or an
error that says whether anything happened. This is the lowest room: it imports none of the other rooms.

A caller's duties, in order: begin; let the application work; poll; then commit in one phase, or prepare and
afterwards commit or roll back, repeated until the answer is final; release. After a crash: list what is
prepared, then ask the ledger, then settle.

In the order in which a branch passes them:

============================  ================================================================================
:mod:`.contract`              declares what a coordinator may ask of a database, and what each answer means;
                              open it first.
:mod:`.ids`                   defines transaction ids and gids, and parses them; the names of foreign
                              transactions are values too.
:mod:`.settings`              holds the settings of one participant.
:mod:`.registry`              holds the participants of a process by name.
:mod:`.postgres`              implements the contract for PostgreSQL.
:mod:`.three_phase`           defines the states and transitions of three-phase commit's rows, and what is
                              asked of them.
:mod:`.scripted`              implements the contract in memory with scripted answers, for tests.
:mod:`.scripted_three_phase`  implements the rows of three-phase commit in memory, for tests.
:mod:`.foreign_ground`        computes the settings of a session in a database that others own.
:mod:`.believed`              finds the roles that could change what a schema of undoubt's means.
:mod:`.alembic_lock`          runs one Alembic migration at a time, and makes the engine that it uses.
:mod:`.findings`              defines what a check of a participant reports.
:mod:`.backoff`               computes the pauses of loops that try again.
:mod:`.bounds`                refuses durations, counts, texts and paths that are out of bounds.
:mod:`.libpq`                 tells what libpq accepts as a port, and as a database's name.
:mod:`.sql`                   holds a room's named statements, and quotes SQL strings and identifiers.
:mod:`.redact`                removes passwords from connection strings.
:mod:`.invariant`             raises ``InvariantViolation`` if a condition does not hold, also under ``python
                              -O``.
:mod:`.errors`                defines the errors of participants, and the root of all errors.
============================  ================================================================================
"""
