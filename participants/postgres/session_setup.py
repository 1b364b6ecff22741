"""Builds the first round trip of a branch: clean up after the last branch, set the session up, begin, and
mark.

The marker is a setting that lasts exactly as long as its transaction. By the marker the last round trip
checks that the transaction that it ends is still the one that was begun here."""

from __future__ import annotations

import bisect

from undoubt.participants.ids import Gid, SessionKey
from undoubt.participants.postgres.pool import S, Slot
from undoubt.participants.postgres.session import ServerParameters, ServerSession
from undoubt.participants.postgres.sql import query
from undoubt.participants.sql import literal

APPLICATION_NAME_BYTES_MAX = 63
"""NAMEDATALEN - 1: the server cuts longer names."""

_BUCKETS_S = (
    1,
    2,
    5,
    10,
    15,
    20,
    30,
    45,
    60,
    90,
    120,
    180,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    43200,
    86400,
)
"""Timeouts are rounded up to one of these values, so that a session seldom needs a new setting."""

_SYNCHRONOUS = frozenset({"on", "remote_apply"})


def ledger_name(ledger_id: str) -> str:
    """The application_name of a session outside branches."""
    return f"undoubt:{ledger_id}"


BY_PID = "~"
"""The character before a hash that includes the process id of the session."""

BY_ROLE = "@"
"""The character before a hash without a process id, which a pooler hides: such a name is believed only of
sessions of certain roles."""


def known_pid(session: ServerSession) -> int:
    """The process id by which :func:`branch_name` binds a name to ``session``: 0 behind a pooler, where the
    next transaction may run in another process."""
    return 0 if session.intro.pooled else session.pid


def branch_name(gid: Gid, key: SessionKey, pid: int) -> str:
    """The application_name of a session inside the branch ``gid``, whose ledger session has that ``key``;
    ``pid`` comes from :func:`known_pid`. The name is ``undoubt:<ledger>:<session>.<seq>~<hash>``, behind a
    pooler with ``@`` instead of ``~``; without a key it is ``undoubt:<ledger>:<transaction id>``.

    If the server would cut the name, it has no transaction, since the first digits of a number are another
    number. With a key that happens only if session and seq have more than 34 digits together."""
    proof = key.backend(gid.txid, pid)
    numbers = f"{gid.txid.session}.{gid.txid.seq}{BY_PID if pid else BY_ROLE}{proof}"
    name = f"{ledger_name(gid.ledger)}:{numbers if proof else gid.txid}"
    return name if len(name) <= APPLICATION_NAME_BYTES_MAX else ledger_name(gid.ledger)


def marker(gid: Gid) -> str:
    """The value of ``undoubt.tx`` in the branch ``gid``. It contains the number of the branch, since two
    branches of one transaction may be on the same server."""
    return f"{gid.txid}:{gid.branch}"


def timeouts_ms(timeout_s: float, intro: ServerParameters) -> tuple[int, int]:
    """lock_timeout and idle_in_transaction_session_timeout for a branch that should end within ``timeout_s``
    seconds, in milliseconds; never longer than the server's own settings."""
    index = bisect.bisect_left(_BUCKETS_S, timeout_s)
    bucket = _BUCKETS_S[min(index, len(_BUCKETS_S) - 1)]
    return _shorter(bucket, intro.lock_timeout_s), _shorter(bucket, intro.idle_timeout_s)


def _shorter(bucket: int, own_s: float) -> int:
    return bucket * 1000 if own_s <= 0 else min(bucket * 1000, max(round(own_s * 1000), 1))


def begin_script(slot: Slot[S], gid: Gid, name: str, timeouts: tuple[int, int]) -> str:
    """The first round trip of a branch, as one simple query; ``name`` comes from :func:`branch_name`.

    It uses SET LOCAL, not set_config(): a SELECT would take a snapshot, and then the application could no
    longer choose its isolation level. Behind a transaction pooler all settings last for the transaction only.
    """
    intro = slot.session.intro
    if intro.pooled:
        return local_script(gid, name, intro, timeouts, begin="begin")
    begin = ["begin", *(["set local role none"] if intro.as_login else []), *mark_statements(gid, name)]
    before = [query("reset")] if slot.used else []
    if slot.used or slot.timeouts_ms != timeouts:
        before += setting_statements(intro.synchronous_commit, timeouts, "set")
    if before:
        # In a separate transaction: UNLISTEN forbids PREPARE, and a rollback would undo the settings.
        before = ["begin", *before, "commit"]
    return "; ".join([*before, *begin])


def clean_script(slot: Slot[S]) -> str:
    """One simple query that cleans an idle session that an application has used. It sets the timeouts of its
    last branch again, which the next branch is likely to need as well."""
    settings: list[str] = []
    if slot.timeouts_ms is not None:
        settings = setting_statements(slot.session.intro.synchronous_commit, slot.timeouts_ms, "set")
    return "; ".join([query("reset"), *settings])


def local_script(
    gid: Gid, name: str, intro: ServerParameters, timeouts: tuple[int, int], *, begin: str
) -> str:
    """Like :func:`begin_script`, but all settings end with the transaction, for a session that other clients
    use as well. ``begin`` is empty if a transaction has begun already."""
    return "; ".join([*([begin] if begin else []), *local_statements(gid, name, intro, timeouts)])


def local_statements(gid: Gid, name: str, intro: ServerParameters, timeouts: tuple[int, int]) -> list[str]:
    """The statements that set up a branch in a transaction that has begun; their effects end with it."""
    return [*mark_statements(gid, name), *setting_statements(intro.synchronous_commit, timeouts, "set local")]


def mark_statements(gid: Gid, name: str) -> list[str]:
    """The statements that mark the transaction of a branch; ``name`` comes from :func:`branch_name`."""
    return [
        f"set local undoubt.tx = {literal(marker(gid))}",
        f"set local application_name = {literal(name)}",
    ]


def setting_statements(synchronous_commit: str, timeouts: tuple[int, int], how: str) -> list[str]:
    """The statements that give a session the timeouts of a branch, ``how``: ``set`` or ``set local``;
    ``synchronous_commit`` is the server's own value."""
    lock_ms, idle_ms = timeouts
    settings = [
        f"{how} lock_timeout = '{lock_ms}ms'",
        f"{how} idle_in_transaction_session_timeout = '{idle_ms}ms'",
    ]
    if synchronous_commit not in _SYNCHRONOUS:
        settings.append(f"{how} synchronous_commit = 'on'")
    return settings
