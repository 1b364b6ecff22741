"""``undoubt sidecar``: transactions over HTTP, for services in any language.

What enters: requests on a unix socket or a TCP port. What leaves: JSON, and errors as problem documents
(RFC 9457) with the names of :mod:`undoubt.errors`. One coordinator of :mod:`undoubt.coordinator` drives all
transactions, as in a Python application, with two differences: every branch is prepared and every commit is
recorded, so that the ledger tells each outcome to callers who were not answered; and a branch may be run by
the caller, with a driver of its own.

Duties, in this order: a request is within its bounds; its caller is known and may do this; a repeated key
gets the first answer; only then the transaction is looked for. An answer says what is known, and ``unknown``
is never given as ``aborted``.

In the order in which a request passes them:

======================  ======================================================================================
:mod:`.settings`        what can be set: where it listens, who may, how much.
:mod:`.server`          runs the process: sockets, TLS, signals, drain.
:mod:`.connection`      the HTTP protocol of one connection: who is at its other end.
:mod:`.access`          names each request, measures it, and writes the access log; traces.
:mod:`.app`             takes a request through the modules below.
:mod:`.problems`        refusals, and what each error of undoubt is in HTTP.
:mod:`.tokens`          who may: tokens, certificates, the unix socket, Host and Origin.
:mod:`.capability`      the header Undoubt-Transaction, with which another service joins a transaction.
:mod:`.joining`         carries out what comes with that header, here or at the sidecar that began it.
:mod:`.peers`           calls the sidecar that began a transaction, at the address that the ledger has.
:mod:`.idempotency`     keys of repeated requests, and the first answers.
:mod:`.types`           the bodies of requests and answers.
:mod:`.operations`      the table of operations: method, path, types, who handles it.
:mod:`.handlers`        one function for each operation.
:mod:`.book`            the transactions that were begun here, and what became of each.
:mod:`.lookup`          what the ledger says of a transaction that is not in the book.
:mod:`.statements`      SQL through the sidecar.
:mod:`.sql_values`      values of SQL as JSON and back, without loss.
:mod:`.health`          whether it lives, is ready, and leads; metrics.
:mod:`.openapi`         the description of all this, made from the table and the types.
======================  ======================================================================================
"""
