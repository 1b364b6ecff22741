"""The ledger: sessions, decisions, heuristic outcomes, durably.

What enters: the calls of :mod:`coordinator.ledger.contract`. What leaves: answers that are linearizable and
durable, or an error. From the contract downwards:

- :mod:`~coordinator.ledger.rules`: what may be answered from what is recorded, pure, for every backend.
- :mod:`~coordinator.ledger.machine`, with ``commands`` and ``state``: the deterministic state machine that
  every backend shares which can. Commands in, results out.
- :mod:`~coordinator.ledger.bounds`: what a command may hold, by whoever proposes it and whoever applies it.
- :mod:`~coordinator.ledger.pages`: unfinished decisions in pages, for those who read all of them.
- :mod:`~coordinator.ledger.local`: the contract over a machine in this process; a backend adds how a command
  becomes durable. ``memory`` is the one that does not.
- :mod:`~coordinator.ledger.sqlite`: one file, one owning process.
- :mod:`~coordinator.ledger.postgres`: the tables of one PostgreSQL database, any number of processes.
- :mod:`~coordinator.ledger.calls`, ``calling``, ``server``, ``remote``: the contract between processes;
  :mod:`~coordinator.ledger.judging`: a call is judged before it is queued.
- :mod:`~coordinator.ledger.maintenance`: what an operator does with it.

A backend's duties, in order: draw nonces and read clocks before logging; log; sync; apply; only then answer.
"""

from __future__ import annotations

from coordinator.ledger.urls import open_ledger

__all__ = ["open_ledger"]
