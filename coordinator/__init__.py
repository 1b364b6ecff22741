"""The coordinator: it drives a transaction to its end.

What enters: participants (:mod:`participants`) and a ledger (:mod:`.ledger`). What leaves:
for each transaction one outcome, the same in every participant, or an error that admits not knowing it.

Rooms, from the top:

- :mod:`.coordinator`, :mod:`.transaction`: what an application holds in its hands;
  :mod:`.runnable`: which functions ``run`` takes;
  :mod:`.cancel_scope`: how the task in a block is interrupted.
- :mod:`.protocols`: the commit protocols, plain async functions over two contracts.
  ``two_phase.py`` is the file to open first.
- :mod:`.supervision`: background loops are begun again when they fail.
- :mod:`.session`: the lease on the ledger that fences a dead coordinator's transactions.
- :mod:`.ledger`: the durable record, its state machine and its backends.
- :mod:`.raft`, :mod:`.paxos`: consensus, pure; :mod:`.quorum` beneath.
- :mod:`.wire`: connections between processes: who is there, then frames.

A coordinator's duties, in order: hold a lease; begin branches under ids of that lease; prepare; record COMMIT
before any branch is told to commit; tell all; let the ledger forget. Whatever it does not get done,
:mod:`recovery` does.
"""
