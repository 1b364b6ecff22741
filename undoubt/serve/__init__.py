"""Processes that stay: nodes of the ledger's cluster, with what is made before they start, and the sidecar.

What enters: :class:`~undoubt.config.Settings` and signals. What leaves: a process that reports on stderr and
to systemd that it is ready, and that shuts down in order on SIGTERM or SIGINT. The commands of
:mod:`undoubt.cli` call these modules.

In the order in which a node uses them:

====================  ========================================================================================
:mod:`.certs`         makes a CA, and certificates for nodes and clients.
:mod:`.bootstrap`     makes a node's disk: for a new cluster, from a backup, or for a node that joins.
:mod:`.force`         makes a new cluster from the newest disk of a cluster whose majority is lost.
:mod:`.secrets`       reads the secret of a lost ledger from its file or a backup.
:mod:`.node`          runs a node, and recovery while the node leads.
:mod:`.health`        serves a node's health and metrics over HTTP.
:mod:`.probe`         asks a node or a sidecar of this machine whether it lives.
:mod:`.sidecar`       runs a coordinator behind an HTTP API.
:mod:`.console`       shows operators the state of everything, as a page of a sidecar or a node.
:mod:`.local`         runs nodes, a sidecar or a whole system as children of one process.
:mod:`.loop`          chooses the event loop.
:mod:`.notify`        reports the state of the process to systemd.
:mod:`.pending_acts`  keeps an operator's act beside the disk until the cluster can record it.
====================  ========================================================================================
"""
