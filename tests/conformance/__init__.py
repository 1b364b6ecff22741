"""Cases that other people wrote, run against this transaction manager.

==========  ==================================================================================================
:mod:`.xa`  runs the cases of the X/Open rules for mixed outcomes.
==========  ==================================================================================================
"""
