"""Tests of the console, in a real browser where its page is concerned.

====================  ========================================================================================
:mod:`.rig`           serves a console over a ledger in memory and scripted participants.
:mod:`.reading`       reads the stream of events as a program does.
:mod:`.browser`       opens the page in Chromium, with Playwright, and runs axe-core in it.
:mod:`.conftest`      the console and the browser that the tests of one module share.
====================  ========================================================================================

``test_parts.py`` tests the pieces alone, ``test_stream.py`` what the addresses say and refuse,
``test_page.py`` the page, ``test_in_sight.py`` that what the page draws can be read and is true.
"""
