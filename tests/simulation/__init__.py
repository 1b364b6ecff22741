"""The whole system in one process on a deterministic event loop: what a seed breaks, it breaks again.

What enters: a seed. What leaves: a trace, and a verdict. The coordinator, its protocols, the ledger (kept by
a cluster of nodes, or in a file by its owner) with its clients, and recovery are the shipped code; only what
lies beneath them is simulated: time, network, disks, databases. ``make simulate SEED=7`` prints one run,
``make simulate SEEDS=200`` runs fresh ones.

From the bottom up:

- :mod:`.scheduler`, :mod:`.loop`: virtual time; processes, each an asyncio event loop of its own, that can be
  killed at any callback without running another line.
- :mod:`.network`: connections that are late, cut, half-open, reset. :mod:`.drive`: a disk and its faults;
  :mod:`.files` and :mod:`.nodes`: what lies on it, of a ledger's file and of a cluster's nodes.
- :mod:`.pinned`: clocks, random sources and hash order come from the seed; what is real is out of bounds.
- :mod:`.database`, :mod:`.participant`: PostgreSQL's rules about transactions, and the contract over them;
  :mod:`.agent_table`, :mod:`.agent`: the same for the rows of last-agent commit.
- :mod:`.applications`, :mod:`.members`, :mod:`.faults`: who works, who changes the cluster, what goes wrong;
  :mod:`.strangers`: who prepares transactions under names that the ledger never gave them.
- :mod:`.recorded`, :mod:`.judge`: what everybody was told, and what must hold of it at every step; beside
  them :mod:`tests.linearizability`, and :mod:`.promises`, :mod:`.rows` and :mod:`.agents`, which know what
  the acceptors of Paxos Commit, the rows of three-phase commit and those of last agents have fixed before
  anybody else does. :mod:`.holders` knows who was granted which lock.
- :mod:`.leaders`: who has to hand over, because of a full disk.
- :mod:`.world`, :mod:`.runner`: one run; many. :mod:`.reached`: how much of the shipped code they reach.

Each protocol meets the faults that it promises to survive, and no others. Two-phase commit, and three-phase
commit by a quorum: whatever there is; at times the ledger is destroyed in the end, and three-phase commit
does without it. Paxos Commit: as long as each session keeps a majority of its acceptors, whoever else comes
and goes. Last-agent commit (only if it is asked for, by ``ARGS="--protocol last"``): whatever there is but a
failover of the agent, after which a row that is missing is left to a person. Skeen's termination: the death
of anybody but a database, and no silence of one.

The course of a run: chaos, then peace, then nothing may be in doubt within a bound of virtual time.
"""
