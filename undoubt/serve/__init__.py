"""Processes that stay: nodes of the ledger's cluster, with what is made before they start, and the sidecar.

What enters: :class:`~undoubt.config.Settings` and signals. What leaves: a process that says on stderr when it
is ready, tells systemd so too, and ends in an orderly way on SIGTERM or SIGINT. The commands of
:mod:`undoubt.cli` call these modules.

In the order in which a node meets them:

====================  ========================================================================================
:mod:`.certs`         makes a CA, and certificates for nodes and clients.
:mod:`.bootstrap`     makes a node's disk: for a new cluster, from a backup, or for a node that joins.
:mod:`.force`         makes a new cluster from the newest disk of one whose majority is lost.
:mod:`.secrets`       reads the secret of a lost ledger from its file or a backup.
:mod:`.node`          runs a node, and recovery while the node leads.
:mod:`.sidecar`       runs a coordinator behind an HTTP API.
:mod:`.loop`          chooses the event loop.
:mod:`.notify`        tells systemd the state of the process.
:mod:`.pending_acts`  keeps an operator's act beside the disk until the cluster can record it.
====================  ========================================================================================
"""
