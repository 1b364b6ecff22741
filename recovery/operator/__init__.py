"""What a person at the command line, or a program in their place, sees and does.

In the order in which an operator uses them:

1. :mod:`undoubt.recovery.operator.survey`: everything that is prepared anywhere, and what the ledger says of
it. 2. :mod:`undoubt.recovery.operator.explain`: one prepared branch, the safe action and the proof that it is
safe;
   :mod:`undoubt.recovery.operator.burden` is what the branch holds up.
   :mod:`undoubt.recovery.operator.explain_heuristic`: a branch that has ended another way than was decided.
3. :mod:`undoubt.recovery.operator.resolve`: commits and rolls back one branch, ends an impostor, forgets.
4. :mod:`undoubt.recovery.operator.whole`: all branches of one transaction, looked at and ended together.

5. :mod:`undoubt.recovery.operator.adopt`: the branches of a ledger that is lost.

What is done is recorded with who does it, when and why (:mod:`undoubt.coordinator.ledger.acting`).
"""
