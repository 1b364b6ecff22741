"""The console: a web page for operators, at ``/`` of a sidecar and of a node with ``node.console``.

What enters: requests of a browser, and what the ledger, the participants and this process know. What leaves:
one HTML file, a stream of events with what has changed, and the answers about one transaction. Everything
that the page says comes from the functions and the JSON shapes of the command line, so that the two cannot
differ.

In the order in which data passes:

================  ============================================================================================
:mod:`.settings`  defines the settings of a node's console.
:mod:`.hour`      counts the ends of transactions, and how long commits took, for the last hour.
:mod:`.traces`    keeps when each step of a transaction happened in this process.
:mod:`.rows`      holds the newest transactions, as the ledger has them.
:mod:`.readings`  reads the other parts of the page: sessions, participants, cluster, findings of doctor.
:mod:`.feed`      reads all parts in the background, and tells subscribers what has changed.
:mod:`.watch`     receives what a sidecar's book reports.
:mod:`.console`   puts these together, for a sidecar or for a node.
:mod:`.picture`   collects everything about one transaction.
:mod:`.acts`      ends a transaction, or forgets a heuristic outcome, after the id was typed.
:mod:`.page`      holds the page, and the policy under which a browser runs it.
:mod:`.app`       takes requests: checks, page, stream, answers.
:mod:`.server`    serves it at an address of a node.
================  ============================================================================================
"""
