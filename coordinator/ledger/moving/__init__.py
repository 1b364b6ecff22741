"""Moves a ledger to another place, between all backends: offline, verified, with one place that answers.

What enters: the settings of the old place, and the URL of the new one. What leaves: the same ledger, with a
new incarnation, at the new place, and an old place that answers nothing.

The caller's duties, in order: stop everything that uses the ledger; call :func:`.move.move`, and repeat it if
it fails; change the URL everywhere; run recovery.

The modules, in the order in which a move passes them:

=================  ===========================================================================================
:mod:`.move`       takes the steps of a move, and repeats or undoes them.
:mod:`.place`      declares what a backend does for a move.
:mod:`.image`      holds the whole content of a ledger in the form that all backends share, and compares it.
:mod:`.sqlite`     does so for a SQLite ledger.
:mod:`.postgres`   does so for a PostgreSQL ledger.
:mod:`.cluster`    does so for a cluster's ledger.
:mod:`.etcd`       does so for a ledger in etcd.
:mod:`.etcd_keys`  translates an image into the keys of etcd, and back.
=================  ===========================================================================================
"""
