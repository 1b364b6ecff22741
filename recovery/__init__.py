"""Recovery: it finds what a coordinator left behind, and brings it to the end that was decided.

What enters: a ledger, the participants, :class:`~undoubt.recovery.settings.RecoverySettings`. What leaves: no
prepared branch whose decision is known, and a record of everything that a database did against it.

Rooms, in the order of one pass over one participant:

1. :mod:`.scan`: read the unfinished decisions, list what is prepared, then ask the ledger.
This order
   only: asked before listed, a transaction decided in between would be taken for undecided.
2. :mod:`.plan`: the table from what is known to what is done, pure.
3. :mod:`.resolve`: commits and rolls back what is prepared.
   Undecided ones of the other protocols are ended by :mod:`.terminate`, with
   :mod:`.holders`.
4. :mod:`.unfinished`: judges the branches of recorded decisions that are no longer prepared,
and lets
   the ledger finish what is applied everywhere; :mod:`.heuristics` records what went another
   way.

:mod:`.service` runs it in the background, one :mod:`.worker` a participant,
and :mod:`.deadlocks` beside it. The package :mod:`.operator` serves the
person at the command line. :mod:`.lost` looks for what a ledger before this one has left,
before another one is made.

Whoever runs it needs to do nothing else: everything may be repeated, and two recoveries at once do no harm.
"""
