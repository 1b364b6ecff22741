"""The ledger: sessions, decisions, heuristic outcomes, durably.

What enters: the calls of :mod:`.contract`. What leaves: answers that are
linearizable and durable, or an error. From the contract downwards:

- :mod:`.rules`: what may be answered from what is recorded, pure, for every backend.
- :mod:`.machine`, with ``commands`` and ``state``: the deterministic state machine that
  every backend shares which can. Commands in, results out.
- :mod:`.bounds`: what a command may hold, by whoever proposes it and whoever applies it.
- :mod:`.pages`: unfinished decisions in pages, for those who read all of them.
- :mod:`.local`: the contract over a machine in this process; a backend adds how a command
  becomes durable. ``memory`` is the one that does not.
- :mod:`.sqlite`: one file, one owning process.
- :mod:`.postgres`: the tables of one PostgreSQL database, any number of processes.
- :mod:`.calls`, ``calling``, ``server``, ``remote``: the contract between processes;
  :mod:`.judging`: a call is judged before it is queued.
- :mod:`.maintenance`: what an operator does with it.

A backend's duties, in order: draw nonces and read clocks before logging; log; sync; apply; only then answer.
"""

from __future__ import annotations

from undoubt.coordinator.ledger.urls import open_ledger

__all__ = ["open_ledger"]
