"""Is what a ledger answered possible for one that does everything at once, in some order?

What enters: a :class:`~tests.linearizability.history.History` of calls with the moments at which they were
asked and answered, recorded in simulation or from real processes. What leaves: a list of what is impossible,
empty if all of it can be explained.

- :mod:`.history`, :mod:`.recorder`: what is recorded, and how.
- :mod:`.search`: the search for an order (Wing and Gong, *Testing and Verifying Concurrent Objects*, 1993;
  with the memory of Lowe, *Testing for Linearizability*, 2017), for any model.
- :mod:`.models`: what a ledger promises about one transaction and about one session. Written from the
  contract's docstring; shares no code with any ledger.
- :mod:`.check`: a history cut into parts that can be searched one by one.
"""
