"""``postgresql+psycopg://…``: the ledger as tables of one PostgreSQL database, for any number of processes.

What enters: the calls of the contract. What leaves: answers from rows that are committed, on disk, and on the
synchronous standbys if there are any. From the top:

- :mod:`.ledger`: the contract.
- :mod:`.decisions`: decisions of many callers in one statement (group commit).
- :mod:`.upkeep`: who leads, ledger time, expiry, retention.
- :mod:`.connections`: one statement, one transaction; what its failure means.
- ``queries.sql``: all the statements, each with the reason why it is safe.

What keeps it right, in order: a decision holds its session's row FOR SHARE, so that no expiry passes it by;
verdicts are read in one snapshot; every statement asks whether the server is still the one that the ledger
knew (a failover or a restore begins a new incarnation); no transaction waits for a client, so no client that
stops holds anybody up.
"""
