"""A coordinator over the databases of Django's test runner, which are not those of ``undoubt.toml``.

The runner makes an empty database for each alias, ``test_orders`` (``TEST["NAME"]``) or ``test_orders_1`` in
a process of ``--parallel``, and gives its name to the connections of Django. The participants follow to it
only while Django's test environment is set up, and only if the name is the one that the runner makes of the
name of the participant's database: everywhere else a connection to another database is a mistake, and is
refused.

The coordinator has a ledger of its own, so that no recovery of the application looks for the branches of a
test, and only the participants whose databases the runner has made: nothing of a test can reach another one.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import threading
from collections.abc import Container, Mapping
from multiprocessing import util
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import undoubt.sync
from undoubt.config import Settings, load
from undoubt.coordinator.settings import CoordinatorSettings, LedgerSettings
from undoubt.integrations.extras import needs
from undoubt.integrations.per_process import PerProcess, Source
from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.postgres import schema
from undoubt.participants.settings import ParticipantSettings

with needs("django"):
    from django.db import connections
    from django.test.utils import _TestState

IDLE_S = 0.5
"""How long undoubt keeps a connection that it does not use: less than the 5 s for which PostgreSQL's DROP
DATABASE, the runner's last statement, waits for others (CountOtherDBBackends in procarray.c)."""

_processes: dict[tuple[str, ...], PerProcess] = {}
_lock = threading.Lock()


def process_of_tests(source: Source, names: Mapping[str, str]) -> PerProcess | None:
    """The coordinator of this process over the databases of Django's test runner. ``names``: the participants
    of the aliases that have another name. None outside of a test run, and if no database of a participant of
    ``source`` is in it. Raises ``ConfigurationError``."""
    if not hasattr(_TestState, "saved_data"):
        return None
    settings = source if isinstance(source, Settings) else load(source)
    participants = {}
    for alias, entry in connections.settings.items():
        name = names.get(alias, alias)
        known = settings.participants.get(name)
        if known is not None and _made_by_the_runner(entry, known):
            dsn = make_conninfo(known.dsn, dbname=entry["NAME"])
            participants[name] = replace(known, dsn=dsn, connections_idle_s=IDLE_S)
    if not participants:
        return None
    key = tuple(each.dsn for each in participants.values())
    with _lock:
        if key not in _processes:
            _processes[key] = _OfTests(settings, participants)
        return _processes[key]


def _made_by_the_runner(entry: Mapping[str, Any], known: ParticipantSettings) -> bool:
    """Whether the database of ``entry``, of ``DATABASES``, is the runner's for that of the participant."""
    made = entry.get("TEST", {}).get("NAME") or f"test_{conninfo_to_dict(known.dsn).get('dbname', '')}"
    return re.fullmatch(re.escape(made) + r"(_\w+)?", str(entry["NAME"])) is not None


def _in_tests(own: CoordinatorSettings, participants: Container[str]) -> CoordinatorSettings:
    """The settings of a coordinator whose ledger has no acceptors, and which may lack the agent's database:
    the runner makes only the databases that the chosen tests use. Then the default is two-phase commit."""
    lacks_agent = bool(own.agent) and own.agent not in participants
    if own.protocol == "paxos" or (own.protocol == "last" and lacks_agent):
        own = replace(own, protocol="2pc")
    return replace(own, agent="") if lacks_agent else own


class _OfTests(PerProcess):
    """Opens its coordinator over ``participants``, after it has made undoubt's tables in them."""

    def __init__(self, settings: Settings, participants: dict[str, ParticipantSettings]) -> None:
        super().__init__()
        self._settings = settings
        self._participants = participants

    def _open(self) -> undoubt.sync.Coordinator:
        folder = tempfile.mkdtemp(prefix="undoubt-test-")
        # In a process of --parallel too, which ends without the functions of atexit.
        util.Finalize(None, self._end, args=(folder,), exitpriority=0)
        made = undoubt.sync.connect(
            replace(
                self._settings,
                ledger=LedgerSettings(url=f"sqlite:///{Path(folder) / 'undoubt.db'}"),
                coordinator=_in_tests(self._settings.coordinator, self._participants),
                participants=self._participants,
            )
        )
        try:
            for name, participant in self._participants.items():
                with contextlib.suppress(ParticipantRefused):  # what needs the tables says so
                    made.portal.call(schema.migrate, name, participant)
        except BaseException:
            made.close()
            raise
        return made

    def _end(self, folder: str) -> None:
        self.close()
        shutil.rmtree(folder, ignore_errors=True)
