"""``postgresql+psycopg://…``: the ledger as tables of one PostgreSQL database, for any number of processes.

What enters: the calls of :mod:`undoubt.coordinator.ledger.contract`. What leaves: answers from rows that are
committed, on disk, and on the synchronous standbys if there are any.

In the order in which a call passes them:

===================  =========================================================================================
:mod:`.address`      reads the URL, and makes psycopg's connection parameters of it.
:mod:`.ledger`       implements the contract.
:mod:`.decisions`    sends the decisions of many callers in one statement (group commit).
:mod:`.keys`         implements the part of the contract that is about idempotency keys.
:mod:`.locks`        implements the calls for locks: each queue is one row, changed by compare and set.
:mod:`.sql`          loads the statements of ``queries.sql``; comments there say why each is safe.
:mod:`.connections`  runs one statement in one transaction, and repeats it if that is safe.
:mod:`.opening`      opens a connection, and checks which server it is and which roles could change the
                     schema.
:mod:`.errors`       translates the errors of psycopg and of the server into the contract's.
:mod:`.codec`        translates rows into the contract's values.
:mod:`.maintenance`  elects the process that advances ledger time, expires sessions and deletes old rows.
:mod:`.tables`       creates, upgrades and checks the tables.
:mod:`.rights`       lists the roles that may read the ledger's secret or change its rows.
===================  =========================================================================================

Why it is correct: a decision locks its session's row FOR SHARE, and an expiry updates that row, so that one
excludes the other. Verdicts are read in one snapshot. Each statement checks whether the server is the one
that the ledger was on before; after a failover or a restore a new incarnation begins. No transaction waits
for a client, so a client that stops holds no lock."""
