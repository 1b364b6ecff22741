"""``undoubt demo``: crashes real databases and coordinators, recovers, and proves that nothing was lost.

What enters: the number of seconds to work. What leaves: one :class:`~undoubt.demo.proof.Proof`.

In the order in which the demo uses them:

===============  =============================================================================================
:mod:`.command`  implements ``undoubt demo``.
:mod:`.stage`    starts two servers and the ledger, writes the configuration, and removes all of it at the
                 end.
:mod:`.story`    runs the demo step by step.
:mod:`.workers`  starts worker processes, and reads what they print.
:mod:`.worker`   transfers money in a process that kills itself at a named step of the protocol.
:mod:`.bank`     transfers money by the public API, and audits it by asking the databases.
:mod:`.proof`    holds the result, in keys that scripts may rely on.
:mod:`.show`     prints the steps of the demo on stderr, and the proof on stdout.
===============  =============================================================================================
"""
