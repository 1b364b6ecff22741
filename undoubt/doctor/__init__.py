"""``undoubt doctor``: reports what is wrong, and the line that repairs it.

What enters: the settings. What leaves: :class:`~undoubt.participants.findings.Finding` values, one for each
check, also for those that found no fault. The checks change nothing, and a failed check does not stop the
other checks.

In the order in which the checks run (:meth:`~undoubt.participants.contract.Participant.check` of each
participant runs before the last one):

=====================  =======================================================================================
:mod:`.examine`        runs the checks below, and collects their findings.
:mod:`.configuration`  checks the settings alone.
:mod:`.cluster`        asks the nodes of a replicated ledger for their status.
:mod:`.ledger`         opens the ledger: owner, free space, and what waits for an operator.
:mod:`.orphans`        lists branches that have been prepared for too long, and what they block.
=====================  =======================================================================================
"""

from undoubt.doctor.examine import examine

__all__ = ["examine"]
