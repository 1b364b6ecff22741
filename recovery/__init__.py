"""Recovery: it finishes the branches that a coordinator has left prepared.

What enters: a ledger, the participants, :class:`~undoubt.recovery.settings.RecoverySettings`. What leaves: no
prepared branch whose decision is known, and a record of every branch whose database did something else.

The caller has no duties: every pass may be repeated, and two recoveries may run at once.

In the order in which one pass over one participant goes through them:

======================  ======================================================================================
:mod:`.settings`        holds the settings of recovery.
:mod:`.service`         runs a worker for each participant, and the deadlock detector.
:mod:`.worker`          repeats passes over one participant, with a pause that grows after failures.
:mod:`.scan`            reads the unfinished decisions, lists what is prepared, then asks the ledger for
                        outcomes; in this order only, since a transaction that is decided between question and
                        list would look undecided.
:mod:`.plan`            computes the action from what is known; its docstring is the table.
:mod:`.steps`           names the steps at which tests make recovery die.
:mod:`.resolve`         commits and rolls back prepared branches as planned.
:mod:`.parallel`        runs the work on several branches at once, up to a number.
:mod:`.terminate`       ends undecided transactions of the other protocols by their own rules.
:mod:`.holders`         finds the participants that hold the rows of a three-phase commit, also after they
                        were renamed.
:mod:`.last_agent`      asks the agents of last-agent commit, and deletes the rows that are left there.
:mod:`.unfinished`      asks the databases about recorded branches that are no longer prepared, and finishes
                        decisions that were applied everywhere.
:mod:`.heuristics`      records in the ledger that a database did something else than was decided.
:mod:`.promotion`       finds the committed branches that a promoted or restored server has lost.
:mod:`.sweep`           deletes rows of three-phase commit whose transactions are finished.
:mod:`.deadlocks`       finds deadlocks across databases in the joined wait graphs, and aborts one transaction
                        of each.
:mod:`.lock_waits`      adds the waits for the ledger's own locks to that graph.
:mod:`.report`          defines what a pass and the service report.
:mod:`.meter`           declares the methods that recovery calls for metrics.
:mod:`.lost`            lists the branches that a former ledger has left, before another ledger is made.
:mod:`.without_ledger`  ends three-phase commits whose ledger is destroyed, from the participants alone.
:mod:`.operator`        implements what an operator sees and does.
:mod:`.errors`          defines the errors of an operator's calls.
======================  ======================================================================================
"""
