"""``undoubt demo``: real databases, real crashes, recovery, and the proof.

What enters: how long to work. What leaves: one :class:`~undoubt.demo.proof.Proof`.

- :mod:`~undoubt.demo.bank`: money in two databases, moved by the public API; and the audit, which asks the
  databases directly.
- :mod:`~undoubt.demo.worker`: the process that moves it, and kills itself at a named step of the
  protocol.
- :mod:`~undoubt.demo.workers`: the same process seen by its parent. - :mod:`~undoubt.demo.nodes`: the cluster
  that keeps the ledger; :mod:`~undoubt.demo.node` is one process of it.
- :mod:`~undoubt.demo.stage`: the two servers, the ledger and the configuration; removed at the end, or kept.
- :mod:`~undoubt.demo.story`: what happens, in order.
- :mod:`~undoubt.demo.show`: how it is told, on stderr.
- :mod:`~undoubt.demo.command`: the command.
"""
