"""``etcd://a,b,c``: the ledger as keys of an etcd that the user already runs, for any number of processes.

What enters: the calls of :mod:`undoubt.coordinator.ledger.contract`. What leaves: answers from keys that a
majority of etcd's members has stored.

In the order in which a call passes them:

====================  ========================================================================================
:mod:`.address`       reads the URL, and makes the TLS context.
:mod:`.ledger`        implements the contract.
:mod:`.sessions`      opens, renews and ends sessions, each with a lease of etcd.
:mod:`.decisions`     records the decisions of many callers in one transaction (group commit).
:mod:`.recorded`      answers what is recorded about a transaction.
:mod:`.transactions`  reads transactions and their history.
:mod:`.operators`     implements the part of the contract for operators: heuristic outcomes, acts.
:mod:`.keys`          implements the part of the contract that is about idempotency keys.
:mod:`.locks`         implements the calls for locks: each queue is one key.
:mod:`.keyspace`      names all keys of a ledger, and defines their values.
:mod:`.store`         reads keys at one revision, and changes keys that have not changed since they were read.
:mod:`.messages`      defines the messages of etcd's JSON gateway.
:mod:`.client`        sends them to one member after another until one answers.
:mod:`.summaries`     deletes the details of finished decisions, and keeps summaries.
:mod:`.maintenance`   elects the process that advances ledger time and deletes old keys.
:mod:`.creation`      creates, checks and exports a ledger.
====================  ========================================================================================

Why it is correct: whatever is changed is compared in the same transaction of etcd. A decision compares the
era, the session's key, which its lease deletes, the floor, and the absence of a decision. Reads are
linearizable, at one revision. A repeated transaction whose first answer was lost finds what it has written;
one that is carried out late finds something changed, and changes nothing."""
