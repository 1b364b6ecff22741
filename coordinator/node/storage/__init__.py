"""A node's disk: the data that a node stores, and the files that contain it.

What enters: :class:`~undoubt.coordinator.node.storage.contract.DiskWrite`, in order. What leaves: for each of
them a future that is done once it is durable; and at the start
:class:`~undoubt.coordinator.node.storage.contract.Stored`, everything that the disk holds.

In the order in which a write passes them:

======================  ======================================================================================
:mod:`.contract`        declares the values, and the contract of every storage; the simulation has another
                        storage.
:mod:`.node_storage`    implements the contract with the files below, in one thread
                        (:mod:`undoubt.coordinator.ledger.group_commit`).
:mod:`.logged`          defines the contents of a record, computes the state after all records, and makes
                        checkpoints.
:mod:`.segment_log`     appends records to segments, and distinguishes a torn tail from damage when it opens
                        them.
:mod:`.record`          encodes one record, and finds the records of a segment.
:mod:`.segment`         writes and syncs one preallocated file of records.
:mod:`.snapshot_files`  writes and reads snapshots, one file each.
:mod:`.history_file`    stores finished decisions in SQLite, for operators.
:mod:`.reserve`         reserves space that is released when the disk is full.
:mod:`.carry_over`      reads the SQLite file of a node of version 0.1.0.
:mod:`.salvage`         reads the readable part of a damaged log, for ``cluster restore --force``.
======================  ======================================================================================

The duties of the caller: send nothing that depends on a write before its future is done; after
``StoreBroken`` write nothing more and end the process; never start a node again on a disk that raised
``StorageDamaged``.
"""
