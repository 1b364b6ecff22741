"""``sqlite:///path``: the ledger in one file, for the processes of one user, and of root, on one machine.

What enters: the calls of :mod:`undoubt.coordinator.ledger.contract`. What leaves: answers from a state
machine whose commands are in the file, synced.

One process holds the lock and owns the file. All other processes send their calls to the owner through a unix
socket. When the owner ends, one of them takes the lock.

In the order in which a call passes them:

====================  ========================================================================================
:mod:`.ledger`        takes the lock and becomes the owner, or connects to the owner; repeats a call whose
                      answer was lost.
:mod:`.lock`          holds the ``flock`` that makes a process the owner.
:mod:`.unix_socket`   makes the owner's socket in a private folder, and connects to it.
:mod:`.owner_client`  sends calls to the owner over one connection.
:mod:`.owner`         writes waiting commands in one transaction with one sync, then applies them and answers.
:mod:`.store`         reads and writes the tables of the file: log entries, one snapshot, history.
:mod:`.file`          configures the SQLite connection: WAL, ``synchronous=FULL``, exclusive lock mode.
:mod:`.history`       reads and writes the table of finished decisions.
:mod:`.wal`           finds damage in the WAL before SQLite cuts it.
:mod:`.creation`      makes a new ledger under another name, and renames it.
:mod:`.anchored`      compares the file with its anchor, and decides whether a ledger may be made if there is
                      none.
:mod:`.ledger_files`  lists the files of one ledger, and renames those of a former ledger.
:mod:`.alone`         runs an operator's work on a ledger that no process has open.
:mod:`.restoring`     makes a new file from a backup, or accepts the file as it is; a new incarnation begins.
====================  ========================================================================================
"""
