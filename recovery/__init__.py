"""Recovery: it finds what a coordinator left behind, and brings it to the end that was decided.

What enters: a ledger, the participants, :class:`~recovery.settings.RecoverySettings`. What leaves: no
prepared branch whose decision is known, and a record of everything that a database did against it.

Rooms, in the order of one pass over one participant:

1. :mod:`recovery.scan`: read the unfinished decisions, list what is prepared, then ask the ledger. This order
   only: asked before listed, a transaction decided in between would be taken for undecided.
2. :mod:`recovery.plan`: the table from what is known to what is done, pure.
3. :mod:`recovery.resolve`: commits and rolls back what is prepared.
   Undecided ones of the other protocols are ended by :mod:`recovery.terminate`, with :mod:`recovery.holders`.
4. :mod:`recovery.unfinished`: judges the branches of recorded decisions that are no longer prepared, and lets
   the ledger finish what is applied everywhere; :mod:`recovery.heuristics` records what went another way.

:mod:`recovery.service` runs it in the background, one :mod:`~recovery.worker` a participant, and
:mod:`recovery.deadlocks` beside it. The package :mod:`recovery.operator` serves the person at the command
line. :mod:`recovery.lost` looks for what a ledger before this one has left, before another one is made.

Whoever runs it needs to do nothing else: everything may be repeated, and two recoveries at once do no harm.
"""
