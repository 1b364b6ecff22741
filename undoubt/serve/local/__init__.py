"""Runs nodes, a sidecar or a whole system as child processes, which end with the process that started them.

What enters: a folder. What leaves: child processes that do the same as ``undoubt node`` and ``undoubt
sidecar``. The demo and the benchmarks run nodes; ``undoubt dev`` runs a whole system.

The modules, in the order in which ``undoubt dev`` passes them:

==================  ==========================================================================================
:mod:`.dev`         implements ``undoubt dev``: runs a whole system until it is stopped.
:mod:`.system`      builds that system: two databases, three nodes, a sidecar, and their configuration.
:mod:`.ports`       finds free ports, and reserves them.
:mod:`.sweeper`     ends the other processes and removes their files if the parent was killed.
:mod:`.nodes`       makes and runs the three nodes of a ledger.
:mod:`.processes`   starts one child process, also repeatedly.
:mod:`.child`       is the program of that child process: a node or a sidecar.
:mod:`.parent`      ends a child process when its parent ends.
:mod:`.keeper`      restarts processes that have ended.
==================  ==========================================================================================
"""
