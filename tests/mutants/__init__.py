"""Planted bugs: one patch each, and every one must be found.

What enters: ``*.patch`` in this folder, against the root of the repository. What leaves: for each whether it
was found and how, and last ``found N / planted N``. A patch that does not apply any more is a failure: what
it planted is not looked for any more.

The head of a patch says in a sentence what is planted, and may have lines ``seeds: 800`` (how many runs of
the simulation it may take, 300 if not said), ``nodes: 3`` (that keep the ledger, 0: a file; else drawn),
``protocol: paxos`` (of every transaction; else drawn), and ``test: tests/…::test_…`` (what else must fail;
may be repeated; with ``seeds: 0`` only that). A patch that is dropped in here by hand runs as well.
"""
