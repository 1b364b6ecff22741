"""Stories as text: commands in, trace out.

A file is blocks of one command line, ``----``, and the trace that it must leave, up to a blank line; lines
that begin with ``#`` tell the story. ``make test ARGS="tests/scenarios --rewrite"`` writes the traces anew:
read the diff.
"""
