"""Stories as text: commands in, trace out.

A file is blocks of one command line, ``----``, and the trace that it must leave, up to a blank line; lines
that begin with ``#`` tell the story. ``make test ARGS="tests/scenarios --rewrite"`` writes the traces anew:
read the diff.

===================  =========================================================================================
:mod:`.story`        reads, plays and rewrites the files.
:mod:`.two_phase`    plays two-phase commit: a coordinator dies, answers are lost, recovery runs.
:mod:`.three_phase`  plays three-phase commit: a coordinator dies, and the network is partitioned.
===================  =========================================================================================
"""
