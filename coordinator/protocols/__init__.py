"""Commit protocols: async functions over the contracts of ledger and participants.

What enters: a ``CommitContext`` (:mod:`.context`), which holds the branches of one transaction. What leaves:
a return if the transaction has committed, otherwise ``TransactionAborted``, ``OutcomeUnknown`` or
``HeuristicOutcome``. ``two_phase.py`` is the file to open first.

In the order in which a commit passes them:

=========================  ===================================================================================
:mod:`.context`            holds one transaction during its commit: its branches, its state, and the future
                           that its caller awaits. Its table of transitions serves all protocols.
:mod:`.steps`              names the steps at which tests make the process die.
:mod:`.two_phase`          implements two-phase commit with presumed abort.
:mod:`.three_phase`        implements three-phase commit.
:mod:`.paxos_commit`       implements Paxos Commit.
:mod:`.last_agent`         implements last-agent commit.
:mod:`.first_phase`        asks each branch whether it has written, sends PREPARE, collects the votes, and
                           ends the transaction if no decision is needed; all protocols begin with it.
:mod:`.causes`             reads from the ledger why an operator or another process has aborted the
                           transaction.
:mod:`.record_decision`    commits the branches, and at the same time records a decision that rows or
                           acceptors have fixed already.
:mod:`.second_phase`       sends COMMIT PREPARED or ROLLBACK PREPARED to each branch; all protocols use it.
:mod:`.termination`        ends an interrupted three-phase commit from the participants' rows, without
                           coordinator and ledger.
:mod:`.termination_rules`  computes the next step of a termination from the rows that could be read.
=========================  ===================================================================================
"""
