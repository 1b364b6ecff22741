"""``raft://a:7400,b:7400,c:7400``: the ledger that a cluster of nodes keeps, from a client's side.

What enters: the calls of :mod:`undoubt.coordinator.ledger.contract`. What leaves: answers of whoever leads
the cluster.

- :mod:`.messages`: what travels; nodes speak it too.
- :mod:`.route`: finds the leader, follows it, and asks again what went unanswered.
- :mod:`.ledger`: the contract over a route.
- :mod:`.survey`, ``operate``, ``backup``: what an operator sees, does, keeps.
- :mod:`.links`, ``acceptors``: every node spoken to directly, and Paxos Commit's
  leaders, who need no leader of the cluster.
- :mod:`.rights`: which role of a client each call needs.
- :mod:`.silence`: when a node is taken for gone.

A call is repeated until its deadline, at whoever leads then: all calls may be (``open_session`` by its
nonce). Only when the deadline has passed does the caller hear ``LedgerUnavailable``: what was asked may have
been recorded.
"""
