"""What is wrong, where, and the line that mends it.

What enters: the settings. What leaves: :class:`~undoubt.participants.findings.Finding` values, one for
everything that was looked at, the good ones too. Nothing is changed, and nothing that fails hides the rest.

- :mod:`~undoubt.doctor.configuration`: what the settings alone show.
- :mod:`~undoubt.doctor.ledger`: can it be opened, who owns it, is there room; what in it waits for a person.
- :mod:`~undoubt.doctor.cluster`: which nodes of a replicated ledger answer, and how many more may fail.
- each participant's own :meth:`~undoubt.participants.contract.Participant.check`.
- :mod:`~undoubt.doctor.orphans`: what has been prepared for too long, ours or not, and what it holds up.

:mod:`~undoubt.doctor.examine` puts them together.
"""

from undoubt.doctor.examine import examine

__all__ = ["examine"]
