"""Real PostgreSQL servers of one's own: for the demo, for tests, for trying things.

What enters: settings. What leaves: a server that listens on 127.0.0.1, asks for its password there, and ends
with its process.

- :mod:`~undoubt.embedded.binaries`: where PostgreSQL's programs are.
- :mod:`~undoubt.embedded.passwords`: the password, and how roles get it.
- :mod:`~undoubt.embedded.server`: one server: start, stop, kill, start again.
"""

from __future__ import annotations

from undoubt.embedded.binaries import BinariesMissing
from undoubt.embedded.server import EmbeddedServer, ServerFailed

__all__ = ["BinariesMissing", "EmbeddedServer", "ServerFailed"]
