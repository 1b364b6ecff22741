"""What commands, doctor and the console tell alike: JSON documents, sentences, moments.

Nothing here prints, and nothing here knows a command or a server.

====================  ========================================================================================
:mod:`.shapes`        gives the JSON of results: every key that scripts may rely on.
:mod:`.explain`       gives the JSON of what is known of one prepared branch.
:mod:`.sections`      says the same in sentences.
:mod:`.transactions`  says in words what became of a transaction, and warns before one is ended by hand.
:mod:`.times`         writes moments and lengths of time as text, and reads the latter.
====================  ========================================================================================
"""
