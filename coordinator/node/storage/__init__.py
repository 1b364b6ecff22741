"""A node's disk: what it keeps, and the files that keep it.

What enters: :class:`~undoubt.coordinator.node.storage.contract.Write`, in order. What leaves: a future for
each call, done once the writes are durable; and at the start
:class:`~undoubt.coordinator.node.storage.contract.Stored`, everything that was. In the order in which a write
passes:

====================  =============================================================================
:mod:`.contract`      the values, and what any storage promises; the simulation has one of its own
:mod:`.group_commit`  the driver's queue: what waits while the disk is busy is written together
:mod:`.node_storage`  the storage that ships: puts the files below together, in one :mod:`.thread`
:mod:`.logged`        what a record says; what all records amount to; checkpoints
:mod:`.segment_log`   records in segments: appended, chained, dropped; told whether a tail is torn or damaged
:mod:`.record`        one record in bytes
:mod:`.segment`       one file of records
:mod:`.snapshot_files`  images of the state machine
:mod:`.history_file`  finished decisions, for people
:mod:`.reserve`       space that is given up when the disk is full
:mod:`.carry_over`    the one file of version 0.1.0
====================  =============================================================================

Duties of whoever uses one: hold what depends on a write back until its future is done; after ``StoreBroken``
write nothing more and end the process; never start a node again on a disk that raised ``StorageDamaged``.
"""
