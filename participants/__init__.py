"""Participants: the databases that take part in a transaction, and the words that everybody shares.

What enters: a gid and what to do with that branch. What leaves: a vote, what became of the branch, or an
error that says whether anything happened. The ground floor: it imports none of the other rooms.

- :mod:`.contract`: what a transaction manager may ask of a database, and what each answer means.
  Open this first.
- :mod:`.ids`: transaction ids and gids; foreign ones are values.
- :mod:`.postgres`: PostgreSQL behind the contract.
- :mod:`.scripted`: one that answers as told, for tests.
- :mod:`.foreign_ground`: what sessions of undoubt's own set in databases of others.
- :mod:`.findings`: what a look at a participant finds.
- :mod:`.bounds`: durations and counts, judged when they are given.
- :mod:`.libpq`: what libpq takes for a port, and for the name of a database.
- :mod:`.registry`, ``settings``, ``errors``, ``checks``, ``redact``: what their names say.

A caller's duties, in order: begin; let the application work; poll; then one phase, or prepare and afterwards
commit or rollback, repeated until the answer is final; release. After a crash: list first, ask the ledger,
then settle.
"""
