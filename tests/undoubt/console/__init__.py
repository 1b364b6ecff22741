"""Tests of the console, in a real browser where its page is concerned.

====================  ========================================================================================
:mod:`.rig`           serves a console over a ledger in memory and scripted participants.
:mod:`.reading`       reads the stream of events as a program does.
:mod:`.browser`       opens the page in Chromium, with Playwright, and runs axe-core in it.
:mod:`.slow_network`  a way to the server that a test makes slow, or cuts.
:mod:`.conftest`      the console and the browser that the tests of one module share.
====================  ========================================================================================

``test_parts.py`` tests the pieces alone, ``test_stream.py`` what the addresses say and refuse,
``test_page.py`` the page, ``test_in_sight.py`` that what the page draws can be read and is true,
``test_not_known.py`` that it tells what is old, or not known, as such.
"""
