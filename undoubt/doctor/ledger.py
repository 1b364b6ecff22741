"""Checks the ledger: whether it can be opened, its owner, its free space, and what waits for an operator."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from undoubt.config import Settings
from undoubt.coordinator.errors import (
    LedgerError,
    LedgerLocked,
    LedgerMissing,
    LedgerUnavailable,
    LedgerUnusable,
)
from undoubt.coordinator.ledger.acting import NEW_INCARNATION
from undoubt.coordinator.ledger.contract import ACTS_MAX, Act, DecisionRecord, Ledger, LedgerInfo
from undoubt.coordinator.ledger.disk import usable
from undoubt.coordinator.ledger.pages import every_unfinished
from undoubt.coordinator.ledger.session_mark import is_mark
from undoubt.coordinator.ledger.sqlite import ledger_files
from undoubt.coordinator.ledger.sqlite.lock import holder
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.findings import Finding, Severity
from undoubt.participants.plural import plural

if TYPE_CHECKING:
    from undoubt.coordinator.ledger.etcd.address import EtcdAddress

SQLITE = "sqlite:///"
POSTGRES = "postgresql+psycopg://"
ETCD = "etcd://"
MIB = 2**20
FREE_BYTES_PROBLEM, FREE_BYTES_WARNING = 100 * MIB, 1024 * MIB
NETWORK_FILE_SYSTEMS = frozenset({"9p", "afs", "ceph", "cifs", "fuse.sshfs", "nfs", "nfs4", "smb3", "smbfs"})


def missing(settings: LedgerSettings) -> Finding | None:
    """A finding if a SQLite ledger does not exist, else None. The check must not create a ledger: a new one
    in the wrong folder would report every branch as another ledger's."""
    if not settings.url.startswith(SQLITE):
        return None
    path = Path(settings.url.removeprefix(SQLITE))
    try:
        with usable(path):
            if path.exists():
                return None
            ledger_files.check_absent(path)
    except LedgerMissing as error:
        return Finding(
            None,
            "ledger",
            Severity.PROBLEM,
            str(error),
            "nothing can be decided without a ledger, and prepared branches wait",
            "undoubt ledger restore BACKUP",
        )
    except LedgerError as error:
        return not_opened(error)[0]
    return Finding(
        None,
        "ledger",
        Severity.PROBLEM,
        f"no ledger at {settings.url}",
        "applications create it when they first connect, if all databases answer and none has a branch of a"
        " former one; if there has been a ledger, look for the right configuration before a new one is made",
        "undoubt ledger init",
    )


def not_opened(error: LedgerError) -> list[Finding]:
    """The findings about a ledger that cannot be opened; the text of ``error`` says what to do."""
    why = "nothing can be decided until that is repaired, and prepared branches wait"
    if isinstance(error, LedgerUnusable) and error.mends:
        rights = "objects that are put into the schema would run with the ledger's rights"
        return [
            Finding(
                None,
                "ledger_schema",
                Severity.PROBLEM,
                mend.what,
                f"{rights}, so it is not used: {why}. {mend.how[0].upper()}{mend.how[1:]} (section ledger)",
                mend.line or None,
            )
            for mend in error.mends
        ]
    gone = isinstance(error, LedgerUnavailable | LedgerLocked)
    return [Finding(None, "ledger", Severity.UNREACHABLE if gone else Severity.PROBLEM, str(error), why)]


def room_beside(settings: LedgerSettings) -> list[Finding]:
    """The free space beside a SQLite ledger that cannot be opened, since a full disk may be the cause."""
    if not settings.url.startswith(SQLITE):
        return []
    try:
        return [_room(Path(settings.url.removeprefix(SQLITE)).resolve())]
    except OSError:  # there is no such folder: reported by the other finding
        return []


async def look_at_ledger(ledger: Ledger, settings: Settings, older_than_s: float) -> list[Finding]:
    """The findings about an open ledger. Raises ``LedgerError``."""
    info = await ledger.info()
    unfinished = [record async for record in every_unfinished(ledger) if not is_mark(record.txid)]
    return [
        _identity(info),
        *_place(settings.ledger, ledger),
        *await _rights(settings.ledger),
        *await _members(settings.ledger),
        *_unfinished(unfinished, settings, older_than_s),
        _heuristics(info.heuristics_open),
        *_incarnations(await ledger.acts(limit=ACTS_MAX), settings.ledger.retention_s),
    ]


def _identity(info: LedgerInfo) -> Finding:
    what = f"{info.backend} ledger {info.ledger_id} at {info.url}, tables {info.schema}"
    return Finding(None, "ledger", Severity.OK, what)


def _place(settings: LedgerSettings, ledger: Ledger) -> Iterator[Finding]:
    if not settings.url.startswith(SQLITE):
        return
    path = Path(os.path.realpath(settings.url.removeprefix(SQLITE)))
    owner = (
        "no other process has it open: recovery runs only once such a process is started"
        if ledger.leads
        else f"process {holder(path)} owns it, answers, and recovers"
    )
    yield Finding(None, "ledger_owner", Severity.OK, owner)
    yield _room(path)
    kind = file_system(path)
    if kind in NETWORK_FILE_SYSTEMS:
        yield Finding(
            None,
            "ledger_file_system",
            Severity.PROBLEM,
            f"{path} is on a network file system ({kind})",
            "its locks cannot be relied on: two processes could own the ledger at the same time, and violate"
            " decisions. Stop the processes that use it and move the file to a local disk",
        )


async def _rights(settings: LedgerSettings) -> list[Finding]:
    """The rights of other roles in a PostgreSQL ledger. Its schema is trusted, since the ledger is open."""
    if not settings.url.startswith(POSTGRES):
        return []
    from undoubt.coordinator.ledger.postgres.rights import rights  # noqa: PLC0415 - imports SQLAlchemy, which other ledgers do not need

    schema = Finding(
        None, "ledger_schema", Severity.OK, "schema undoubt_ledger belongs to roles that are trusted"
    )
    found = [
        Finding(
            None,
            "ledger_secret",
            Severity.PROBLEM,
            str(right),
            "a role that reads the secret can forge names of the ledger's branches, and a role that writes"
            " decides transactions. Revoke the right, or name the role in ledger.schema_owners if it is a"
            " role of undoubt or makes the backups",
            right.line,
        )
        for right in await rights(settings)
    ]
    sound = Finding(
        None, "ledger_secret", Severity.OK, "no other role reads its secret or changes what is recorded"
    )
    return [schema, *(found or [sound])]


async def _members(settings: LedgerSettings) -> list[Finding]:
    """The members of the etcd that has the ledger, and who may read its keys."""
    if not settings.url.startswith(ETCD):
        return []
    from undoubt.coordinator.ledger.etcd import creation  # noqa: PLC0415 - needs an extra

    problems = [
        Finding(
            None,
            "ledger_members",
            Severity.PROBLEM,
            problem,
            "without a majority of etcd's members, or without room, nothing can be decided",
        )
        for problem in await creation.member_problems(settings)
    ]
    sound = Finding(None, "ledger_members", Severity.OK, "all members of etcd answer, and have room")
    return [*(problems or [sound]), *etcd_access(settings)]


def etcd_access(settings: LedgerSettings) -> list[Finding]:
    """Who may read the keys of a ledger in etcd, as far as the settings tell."""
    from undoubt.coordinator.ledger.etcd.address import read  # noqa: PLC0415 - only for this ledger

    place = read(settings.url)
    return [_readers(settings, place), *_encryption(settings, place)]


def _readers(settings: LedgerSettings, place: EtcdAddress) -> Finding:
    """Who may read the ledger's secret. The rights of etcd's users can be seen by its root user only."""
    fix = f"let etcd ask for users, and give the role of undoubt's user readwrite on {place.prefix}/ alone"
    risk = "whoever reads the secret can forge names of the ledger's branches, and whoever writes decides"
    if place.user:
        what = f"etcd asks for a user; only {place.user!r} and root should have rights on {place.prefix}/"
        return Finding(None, "ledger_secret", Severity.OK, what)
    if settings.tls_cert:
        what = "etcd asks for no user: every certificate that it trusts opens the ledger's keys"
        return Finding(None, "ledger_secret", Severity.WARNING, what, f"{risk}: {fix}")
    local = all(endpoint.loopback for endpoint in place.endpoints)
    what = "etcd asks for no user and no certificate: whoever reaches its port opens the ledger's keys"
    return Finding(
        None, "ledger_secret", Severity.WARNING if local else Severity.PROBLEM, what, f"{risk}: {fix}"
    )


def _encryption(settings: LedgerSettings, place: EtcdAddress) -> Iterator[Finding]:
    if settings.tls_ca or all(endpoint.loopback for endpoint in place.endpoints):
        return
    yield Finding(
        None,
        "ledger_tls",
        Severity.PROBLEM,
        "etcd is asked without TLS over a network",
        "its password, and the ledger's secret, can be read on the way: set ledger.tls_ca",
    )


def _room(path: Path) -> Finding:
    free_bytes = shutil.disk_usage(path.parent).free
    what = f"{free_bytes // MIB:,} MiB free beside {path}"
    if free_bytes >= FREE_BYTES_WARNING:
        return Finding(None, "ledger_disk", Severity.OK, what)
    severity = Severity.PROBLEM if free_bytes < FREE_BYTES_PROBLEM else Severity.WARNING
    return Finding(None, "ledger_disk", severity, what, "without room nothing can be decided: make room")


def file_system(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that ``path`` is on, as Linux names it; empty if that is not known.
    https://man7.org/linux/man-pages/man5/proc_pid_mounts.5.html"""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text()
        except OSError:
            return ""
    best, kind = "", ""
    for line in mounts.splitlines():
        _, point, found, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, found
    return kind


def _unfinished(
    records: Sequence[DecisionRecord], settings: Settings, older_than_s: float
) -> Iterator[Finding]:
    """Decisions that some branch has not applied. Their age is measured by wall clocks, which is exact enough
    for a report."""
    waiting = Counter(branch.participant for record in records for branch in record.branches)
    for name in sorted(waiting.keys() - settings.participants.keys()):
        count = plural(waiting[name], "decision has", "decisions have")
        yield Finding(
            None,
            "unfinished",
            Severity.PROBLEM,
            f"{count} a branch in participant {name!r}, which is not configured here",
            "they stay unfinished until that database is configured, under this or another name",
            f'[participants.{name}]\ndsn = "postgresql://app@host/{name}"',
        )
    old = [record for record in records if time.time() - record.decided_at >= older_than_s]
    count = plural(len(records), "decision is", "decisions are")
    what = f"{count} not yet known to be applied everywhere; old: {len(old)}"
    if not old:
        yield Finding(None, "unfinished", Severity.OK, what)
        return
    yield Finding(
        None,
        "unfinished",
        Severity.PROBLEM,
        what,
        "recovery finishes them: check that it runs, and read its log",
        "undoubt recover --once",
    )


def _incarnations(acts: Sequence[Act], seconds: float) -> Iterator[Finding]:
    """The new incarnations that began without an operator, as long as their sessions may be kept."""
    for act in acts:
        if act.verb == NEW_INCARNATION and time.time() - act.at < seconds:
            began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(act.at))
            yield Finding(
                None,
                "ledger_set_back",
                Severity.WARNING,
                f"{act.subject}; a new incarnation began at {began}",
                "it has forgotten decisions that were acknowledged: what is in doubt from then is left to an"
                f" operator. This is shown for {seconds / 86_400:g} days",
                "undoubt indoubt list",
            )


def _heuristics(count: int) -> Finding:
    if not count:
        return Finding(None, "heuristics", Severity.OK, "no database did something else than was decided")
    return Finding(
        None,
        "heuristics",
        Severity.PROBLEM,
        f"{plural(count, 'branch', 'branches')} ended otherwise than decided, or may have",
        "the data of their databases may contradict each other: `explain` says what to repair, `forget`"
        " records that it is repaired",
        "undoubt indoubt list",
    )
