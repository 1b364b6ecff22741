"""Real faults: real nodes, coordinators and databases, and everything that can happen to their machines.

What enters: a seed and a number of seconds. What leaves: one line of JSON on stdout (``ok`` and why),
everything else on stderr, the schedule of faults first. ``python -m tests.faults --seconds 60 --seed 1``.

Three nodes, two coordinator processes with eight callers each and two PostgreSQL servers. Each node and each
coordinator is a machine of its own: a network namespace on a bridge, a small disk (nodes), a wall clock.

- :mod:`.__main__`: what has to be installed; a private world for the run (namespaces of processes, mounts,
  networks and IPC), so that the kernel itself removes all of it, however the run ends.
- :mod:`.inside`: the run, in that world.
- :mod:`.schedule`: which faults, when, for how long: a function of the seed alone.
- :mod:`.nemesis`: carries them out, and makes sure that each has had its effect.
- :mod:`.network`, :mod:`.disks`, :mod:`.stall`, :mod:`.machines`, :mod:`.stage`: what they happen to.
- :mod:`.application`: the coordinators' program; it tells all that it asks and hears as it goes, so that a
  SIGKILL takes nothing of it back. :mod:`.told` reads that.
- :mod:`.judge`: what must be so in the end, from the databases, from the ledger, and from what was told;
  :mod:`.holders`: of locks.
"""
