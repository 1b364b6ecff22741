"""Tests of what users see: the public API, settings, metrics, the command line, integrations.

Read ``test_end_to_end.py`` first. ``test_bad_arguments.py`` and ``test_bad_settings.py`` give wrong values to
everything; the other tests are named after what they break.

====================  ========================================================================================
:mod:`.sync`          tests the synchronous API.
:mod:`.integrations`  tests the integrations with other libraries.
:mod:`.sidecar`       tests the HTTP API, as a process.
:mod:`.console`       tests the console: its stream, its acts, and its page in a real browser.
:mod:`.cli`           tests the command line.
:mod:`.relay`         tests ``undoubt relay``, and what it delivers to.
:mod:`.doctor`        tests the checks of ``undoubt doctor``.
:mod:`.bench`         tests the benchmark and its figures.
====================  ========================================================================================
"""
