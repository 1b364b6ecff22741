"""Calls to another process: numbered requests, answers in any order, errors as messages.

What enters: a call, and a callback for its answer. What leaves: the answer, or the error that the other
process has raised. This room does not know the ledger or the cluster; its users define the calls.

In the order in which a call passes them:

================  ============================================================================================
:mod:`.calls`     defines the base class of calls, which declare their reply, version and right.
:mod:`.client`    encodes a call and decodes it with the peer's types before it is queued, and refuses what
                  the peer could not read; numbers requests, passes each answer to the caller that waits for
                  it, and measures for how long a peer has sent nothing while it owes an answer.
:mod:`.envelope`  defines and encodes requests, answers and errors.
:mod:`.server`    counts the requests of a frame before they are decoded, carries out each independently of
                  the others, and answers.
================  ============================================================================================
"""
