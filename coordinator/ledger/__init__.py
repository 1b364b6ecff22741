"""The ledger: sessions, decisions and heuristic outcomes, recorded durably.

What enters: the calls of :mod:`.contract`. What leaves: answers that are linearizable and durable, or an
error.

A backend's duties, in order: draw nonces and read clocks before the command is logged; log the command; sync;
apply the command; answer only then.

The modules and rooms, in the order in which a call passes them:

============================  ================================================================================
:mod:`.urls`                  chooses the backend that a ledger's URL names, and opens it.
:mod:`.contract`              declares the calls, their arguments, results and errors, and the two rules that
                              every backend keeps.
:mod:`.agents`                declares the call about the agents of last-agent commit, and its values.
:mod:`.agent_calls`           defines the message of that call.
:mod:`.locks`                 declares the calls for distributed locks.
:mod:`.lock_calls`            defines the messages of the calls for locks.
:mod:`.calls`                 defines one message for each call of the contract, with the type of its reply,
                              and implements the contract by one function that carries out a message, in
                              this process or in another.
:mod:`.ledger_call`           defines the base of those messages.
:mod:`.key_calls`             defines the messages about idempotency keys.
:mod:`.server`                answers the calls of other processes on the ledger that this process owns.
:mod:`.state_machine_ledger`  implements the contract over a state machine in this process; a backend adds how
                              a command becomes durable.
:mod:`.keyed_ledger`          implements the part of the contract that is about keys, over a state machine.
:mod:`.lock_serving`          implements the calls for locks over a state machine in this process.
:mod:`.rules`                 computes, for all backends, which names the ledger gave, and the answers that
                              follow from the records.
:mod:`.commands`              defines all changes of the ledger's state as one closed union, encodes them, and
                              refuses a command with a field that is out of bounds.
:mod:`.machine`               applies commands to the state, and answers queries about it; without clock, IO
                              or randomness.
:mod:`.state`                 holds the machine's state, with the rest of finished transactions, and encodes
                              it as a snapshot.
:mod:`.keys`                  holds which transaction has an idempotency key, and the results of committed
                              keys.
:mod:`.lock_queue`            computes, for all backends, who gets a lock next; holds all locks of the
                              machine's state.
:mod:`.lock_watch`            waits for locks on a ledger that tells no process of a change.
:mod:`.leases`                computes which sessions have expired, by a monotonic clock.
:mod:`.session_mark`          marks a session whose every commit is recorded; every process can read the mark.
:mod:`.pages`                 reads all unfinished decisions in pages.
:mod:`.history`               keeps finished transactions until the store of history has them.
:mod:`.memory`                implements a ledger without durability, for tests.
:mod:`.group_commit`          stores waiting writes together, with one sync, in one thread; the states of a
                              disk.
:mod:`.sqlite`                implements a ledger in one file, which one process owns.
:mod:`.postgres`              implements a ledger in tables of one PostgreSQL database, for any number of
                              processes.
:mod:`.etcd`                  implements a ledger in keys of an etcd, for any number of processes.
:mod:`.cluster`               implements a client of a ledger that a cluster of nodes keeps.
:mod:`.durable`               writes files, and syncs their folders.
:mod:`.disk`                  classifies a failed write: no room, or it is unknown what was written.
:mod:`.anchor`                stores the last durable record of a log in a second file, by which a log that
                              was set back is recognized.
:mod:`.schema`                finds the revision of the SQL ledgers' tables, and upgrades them with Alembic.
:mod:`.maintenance`           creates, upgrades, checks, backs up and restores a ledger for an operator.
:mod:`.move_mark`             marks at a place that its ledger is moved to or from there.
:mod:`.move_rules`            carries out the commands of a move on the state.
:mod:`.moving`                moves a ledger to another place, of any backend.
:mod:`.backup`                writes and reads the file of a backup.
:mod:`.secret_file`           writes and reads the file that holds a ledger's secret.
:mod:`.acting`                records an operator's act in the ledger before the act and after it.
============================  ================================================================================
"""

from __future__ import annotations

from undoubt.coordinator.ledger.urls import open_ledger

__all__ = ["open_ledger"]
