"""Processes that stay: where settings, nodes, ledgers and recovery are put together and run until they are
told to stop.

What enters: :class:`~undoubt.config.Settings` and signals. What leaves: a process that says on stderr when
it is ready, tells systemd so as well (:mod:`.notify`), and ends in an orderly way on SIGTERM or SIGINT.
:mod:`.node` runs a member of the ledger's cluster, :mod:`.certs` makes certificates for it; the commands
of :mod:`undoubt.cli` call them.
"""
