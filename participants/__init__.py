"""Participants: the databases that take part in a transaction, and the values that all rooms share.

What enters: a gid, and an action on that branch. What leaves: a vote, the outcome of the branch, or an error
that says whether anything happened. This is the lowest room: it imports none of the other rooms.

A caller's duties, in order: begin; let the application work; poll; then commit in one phase, or prepare and
afterwards commit or roll back, repeated until the answer is final; release. After a crash: list the prepared
branches, then ask the ledger, then settle.

The modules, in the order in which a branch passes them:

============================  ================================================================================
:mod:`.contract`              declares the calls to a database, and what each answer means; read it first.
:mod:`.ids`                   defines and parses transaction ids and gids; the names of foreign
                              transactions are values too.
:mod:`.settings`              defines the settings of one participant.
:mod:`.registry`              holds the participants of a process by name.
:mod:`.postgres`              implements the contract for PostgreSQL.
:mod:`.three_phase`           defines the states and transitions of the rows of three-phase commit, and the
                              calls to them.
:mod:`.last_agent`            defines the rows of last-agent commit, and the calls to the database that is
                              the agent.
:mod:`.outbox`                defines the messages of an outbox, and the calls to it.
:mod:`.scripted`              implements the contract in memory with scripted answers, for tests.
:mod:`.scripted_agent`        implements the rows of last-agent commit in memory, for tests.
:mod:`.scripted_three_phase`  implements the rows of three-phase commit in memory, for tests.
:mod:`.hardened_session`      computes the settings of a session in a database that another role owns.
:mod:`.schema_trust`          finds the roles that could change what a schema of undoubt means.
:mod:`.alembic_lock`          runs one Alembic migration at a time, and makes the engine that it uses.
:mod:`.findings`              defines what a check of a participant reports.
:mod:`.backoff`               computes the pauses of loops that retry.
:mod:`.deadlines`             serves all deadlines of an event loop with one timer.
:mod:`.tasks`                 defines tasks that cancelling does not stop, and futures that go on without a
                              task; waits for several together.
:mod:`.bounds`                refuses durations, counts, texts and paths that are out of bounds.
:mod:`.libpq`                 checks which ports and database names libpq accepts.
:mod:`.sql`                   holds a room's named statements, and quotes SQL strings and identifiers.
:mod:`.redact`                removes passwords from connection strings.
:mod:`.plural`                writes a count and its noun.
:mod:`.invariant`             raises ``InvariantViolation`` if a condition does not hold, also under ``python
                              -O``, and looks up transitions in tables of states.
:mod:`.errors`                defines the errors of participants, and the root of all errors.
============================  ================================================================================
"""
