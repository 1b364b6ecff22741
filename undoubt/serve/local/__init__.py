"""Processes on one machine that end with the process that started them: nodes, a sidecar, a whole system.

What enters: a folder. What leaves: children that run what ``undoubt node`` and ``undoubt sidecar`` run. The
demo and the benchmarks take the nodes; ``undoubt dev`` takes all of it.

In the order in which ``undoubt dev`` passes them:

==================  ==========================================================================================
:mod:`.dev`         runs a whole system until it is told to stop: what ``undoubt dev`` does.
:mod:`.system`      builds that system: two databases, three nodes, a sidecar, their configuration.
:mod:`.ports`       finds free ports, and reserves them.
:mod:`.sweeper`     ends what is left and removes its files, where its parent was killed.
:mod:`.nodes`       makes and runs the three nodes of a ledger.
:mod:`.processes`   starts one child, and starts it again.
:mod:`.child`       is that child: a node or a sidecar.
:mod:`.parent`      ends a child with its parent.
:mod:`.keeper`      starts again what has ended.
==================  ==========================================================================================
"""
