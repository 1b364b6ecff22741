"""What an operator, or a program in the place of one, sees and does.

What enters: a ledger and the participants. What leaves: values for people and for JSON, and acts that are
recorded in the ledger with who did them, when and why (:mod:`undoubt.coordinator.ledger.acting`).

In the order in which an operator uses them:

=========================  ===================================================================================
:mod:`.survey`             lists everything that is prepared anywhere, and what the ledger says about it.
:mod:`.explain`            states of one prepared branch what is known, the safe action, and the proof that it
                           is safe.
:mod:`.holding_cost`       reads which sessions a prepared branch blocks, and for how long it has held back
                           vacuum.
:mod:`.explain_heuristic`  explains a branch that has ended otherwise than was decided, and what to repair.
:mod:`.resolve`            commits or rolls back one branch, rolls back an impostor, forgets a heuristic
                           outcome.
:mod:`.whole_transaction`  shows all branches of one transaction, and ends them in one direction.
:mod:`.adopt`              shows and ends the branches of a ledger that is lost.
=========================  ===================================================================================
"""
