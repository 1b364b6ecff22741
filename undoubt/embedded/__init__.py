"""Starts PostgreSQL servers as child processes, for the demo, tests and experiments.

What enters: settings. What leaves: a server that listens on 127.0.0.1, requires a password there, and ends
with its parent process.

In the order in which the start of a server uses them:

=================  ===========================================================================================
:mod:`.binaries`   finds PostgreSQL's programs, and copies them if another user must read them.
:mod:`.places`     makes private temporary folders, and removes those of processes that have ended.
:mod:`.passwords`  draws the password, and gives it to roles.
:mod:`.server`     ``EmbeddedServer``: initialises, starts, stops and kills one server.
=================  ===========================================================================================
"""

from __future__ import annotations

from undoubt.embedded.binaries import BinariesMissing
from undoubt.embedded.server import EmbeddedServer, ServerFailed

__all__ = ["BinariesMissing", "EmbeddedServer", "ServerFailed"]
