"""The coordinator: it drives a transaction over several participants from its first branch to its end.

What enters: participants (:mod:`undoubt.participants`) and a ledger (:mod:`.ledger`). What leaves: one
outcome for each transaction, the same in every participant, or an error. ``OutcomeUnknown`` says that the
outcome is not known yet.

A coordinator's duties, in order:

1. Open a ledger session, and renew it.
2. Begin each branch under a gid of that session.
3. Prepare every branch that has written.
4. Record COMMIT in the ledger before COMMIT PREPARED is sent to any branch.
5. Commit every branch.
6. Report to the ledger that the transaction is finished.

:mod:`undoubt.recovery` completes what a coordinator leaves undone.

The modules and rooms, in the order in which a transaction passes them:

=====================  =======================================================================================
:mod:`.settings`       holds the settings of the coordinator and of its ledger.
:mod:`.coordinator`    begins transactions, starts the task that commits each of them, and answers which
                       outcome a transaction had.
:mod:`.finisher`       reports the finished transactions to the ledger and the participants, in batches.
:mod:`.runnable`       checks, before anything begins, that ``run`` was given a function that it can run.
:mod:`.session`        opens, renews and replaces the ledger session; its table of states says when
                       transactions may begin.
:mod:`.agent_sessions` keeps the ledger sessions that are bound to agents of last-agent commit.
:mod:`.supervision`    starts a background loop again after it has failed.
:mod:`.transaction`    numbers the transactions of one ledger session; opens the branches of one transaction,
                       commits it or rolls it back, and enforces its timeout.
:mod:`.host`           declares the methods that a transaction calls: of its coordinator, and of an opener.
:mod:`.publishing`     checks a message, and puts it into the outbox of a branch.
:mod:`.locks`          a distributed lock as the application uses it: acquires, guards branches, releases.
:mod:`.lock_session`   keeps the ledger session of a coordinator's locks, and notices which locks are lost.
:mod:`.cancel_scope`   cancels the body of an ``async with`` block whose transaction can no longer commit.
:mod:`.protocols`      implements the commit protocols over the contracts of ledger and participants; open
                       ``two_phase.py`` first.
:mod:`.ledger`         records sessions, decisions and heuristic outcomes, durably.
:mod:`.key_use`        claims a transaction's idempotency key, waits for it, and holds its result.
:mod:`.results`        encodes the results of transactions with a key.
:mod:`.retries`        decides whether ``run`` repeats a transaction, and after which pause.
:mod:`.meter`          declares the methods that receive durations and outcomes, and measures one commit.
:mod:`.errors`         defines the errors of the coordinator and of the ledger.
:mod:`.rpc`            numbers requests to another process, and gives each answer to its caller.
:mod:`.wire`           authenticates connections between processes, and frames what they carry.
:mod:`.node`           runs one member of the cluster that keeps a replicated ledger.
:mod:`.raft`           replicates a log to a majority of nodes, without IO or clock.
:mod:`.paxos`          decides the votes of one transaction on a majority of acceptors, without IO or clock.
:mod:`.quorum`         computes majorities, also while the members change.
=====================  =======================================================================================
"""
