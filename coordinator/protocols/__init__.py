"""Commit protocols: plain async functions over the contracts of ledger and participants.

========================  ================================================================================
:mod:`.two_phase`         two-phase commit with presumed abort: open this file first
:mod:`.three_phase`       three-phase commit; :mod:`.termination` ends what its coordinator did not, by
                          :mod:`.termination_rules`
:mod:`.paxos_commit`      Paxos Commit
:mod:`.context`            what a protocol is given, and what its caller watches
:mod:`.voting`            the first phase, :mod:`.ending` the second and the way back: common to all
:mod:`.copied`            the end of a commit that others than the ledger have fixed
:mod:`.causes`            why somebody else has aborted it, as far as the ledger was told
:mod:`.steps`             the places where a process can die on the way
========================  ================================================================================
"""
