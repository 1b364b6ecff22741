"""``undoubt doctor``: what is wrong, where, and the line that repairs it.

What enters: the settings. What leaves: :class:`~undoubt.participants.findings.Finding` values, one for each
thing that was checked, good ones included. Nothing is changed, and a check that fails does not hide the
others.

In the order in which they run; each participant's own
:meth:`~undoubt.participants.contract.Participant.check` runs before the last one:

=====================  =======================================================================================
:mod:`.examine`        runs the checks below, and collects their findings.
:mod:`.configuration`  checks the settings alone.
:mod:`.cluster`        asks the nodes of a replicated ledger: which answer, and how many more may fail.
:mod:`.ledger`         opens the ledger: owner, room, and what in it waits for a person.
:mod:`.orphans`        lists what has been prepared for too long, and what it blocks.
=====================  =======================================================================================
"""

from undoubt.doctor.examine import examine

__all__ = ["examine"]
