"""``undoubt sidecar``: transactions over HTTP, for services in any language.

What enters: requests on a unix socket or a TCP port. What leaves: JSON, and errors as problem documents
(RFC 9457) with the names of :mod:`undoubt.errors`. One coordinator of :mod:`undoubt.coordinator` drives all
transactions, as in a Python application, with two differences: every branch is prepared and every commit is
recorded, so that the outcome can be read from the ledger by a caller whose request was not answered; and the
caller may run a branch itself, with its driver.

Duties, in this order:

1. Check the bounds of the request.
2. Identify the client, and check that it is allowed to make this request.
3. If the idempotency key is repeated, return the first answer.
4. Find the transaction.

An answer contains what is known. An unknown outcome is never reported as ``aborted``.

The modules, in the order in which a request passes them:

======================  ======================================================================================
:mod:`.settings`        defines the settings: addresses, clients, limits.
:mod:`.server`          runs the process: what it opens, signals, and the drain at its end.
:mod:`.sockets`         opens the unix socket, the TCP port and TLS.
:mod:`.connection`      implements the HTTP protocol of one connection, and identifies its peer.
:mod:`.access`          measures each request, writes the access log, and continues traces.
:mod:`.app`             takes a request through the modules below.
:mod:`.routes`          finds the operation of a request.
:mod:`.problems`        defines refusals, and maps the errors of undoubt to HTTP.
:mod:`.tokens`          authenticates clients: tokens, certificates, the unix socket, Host and Origin.
:mod:`.capability`      makes and verifies the header Undoubt-Transaction, with which another service joins a
                        transaction.
:mod:`.joining`         carries out requests with that header, here or at the sidecar that began the
                        transaction.
:mod:`.peers`           calls the sidecar that began a transaction, at the address that the ledger contains.
:mod:`.shares`          bounds what one client holds of what all clients share.
:mod:`.idempotency`     keeps the first answer for each idempotency key.
:mod:`.types`           defines the bodies of requests and answers.
:mod:`.operations`      holds the table of operations: method, path, types, handler.
:mod:`.handlers`        implements each operation in one function.
:mod:`.locks`           implements the operations for locks, which are held for a client's transactions.
:mod:`.messages`        implements the operation for messages, which are put into an outbox.
:mod:`.book`            keeps the transactions that were begun here, with their outcomes.
:mod:`.lookup`          reads the outcome of a transaction that is not in the book from the ledger.
:mod:`.agency`          runs branches for the sidecars that began their transactions.
:mod:`.agent_branch`    implements a branch that another sidecar runs for this one.
:mod:`.statements`      runs SQL statements for clients.
:mod:`.branch_ends`     finds the statements that would end their branch.
:mod:`.sql_values`      converts values of SQL to JSON and back, without loss.
:mod:`.health`          reports whether the sidecar lives, is ready, and leads; holds its metrics.
:mod:`.openapi`         makes the description of the API from the table and the types.
======================  ======================================================================================
"""
