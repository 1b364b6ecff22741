"""Alembic, one migration at a time: it keeps the one that is running in globals of its own modules
(``alembic.util.langhelpers.ModuleClsProxy``), so that two threads would destroy each other's."""

from __future__ import annotations

import threading

ALONE = threading.Lock()
"""To be held around every command of Alembic's."""
