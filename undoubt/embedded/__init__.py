"""PostgreSQL servers of one's own: for the demo, for tests, for experiments.

What enters: settings. What leaves: a server that listens on 127.0.0.1, asks for its password there, and ends
with its process.

In the order in which a server's start passes them:

=================  ===========================================================================================
:mod:`.binaries`   finds PostgreSQL's programs, and copies them where another user must read them.
:mod:`.places`     makes private temporary folders, and removes those of processes that have ended.
:mod:`.passwords`  draws the password, and gives it to roles.
:mod:`.server`     ``EmbeddedServer``: initialises, starts, stops and kills one server.
=================  ===========================================================================================
"""

from __future__ import annotations

from undoubt.embedded.binaries import BinariesMissing
from undoubt.embedded.server import EmbeddedServer, ServerFailed

__all__ = ["BinariesMissing", "EmbeddedServer", "ServerFailed"]
