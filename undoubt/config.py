"""Settings from ``undoubt.toml``, the environment and flags. A later source overrides an earlier one.

The file is the one that ``--config`` names, else the one that ``UNDOUBT_CONFIG`` names, else
``undoubt.toml`` in the current directory; if there is no file, the defaults apply::

    [ledger]
    url = "sqlite:///undoubt.db"

    [participants.orders]
    dsn = "postgresql://app@orders-db/orders"

**Environment.** ``UNDOUBT_`` and the key's path in capitals, its levels joined by *two* underscores:
``UNDOUBT_LEDGER__URL`` is ``ledger.url``, ``UNDOUBT_PARTICIPANTS__ORDERS__DSN`` is
``participants.orders.dsn``. A participant's name is lower-cased, unless the file has it in another case.
These variables are no keys and are ignored: ``UNDOUBT_CONFIG``, ``UNDOUBT_POSTGRES_BIN``, ``UNDOUBT_TEST_*``,
and the ``UNDOUBT_…_SERVICE_HOST`` and ``UNDOUBT_…_PORT…`` that Kubernetes puts into every container beside a
service of that name (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).

**Relative paths** (``sqlite:///undoubt.db``, ``node.data``, ``tls_ca``, ``password_file``) in a file, and the
defaults of a configuration that has a file, are relative to the file's folder; from the environment, from
flags and from code, to the current directory. ``load`` makes all of them absolute.

Unknown keys and wrong types raise :class:`ConfigurationError`, which names the key by its whole path.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.settings import CoordinatorSettings, LedgerSettings
from undoubt.participants.bounds import OutOfBounds
from undoubt.participants.bounds import path as path_within
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import InvalidName, check_participant_name
from undoubt.participants.redact import redact
from undoubt.participants.settings import ParticipantSettings
from undoubt.recovery.settings import RecoverySettings
from undoubt.serve.console.settings import ConsoleSettings
from undoubt.serve.sidecar.settings import SidecarSettings

__all__ = ["CONFIG_FILE", "ConfigurationError", "Settings", "load", "redact"]

CONFIG_FILE = "undoubt.toml"
ENV_PREFIX = "UNDOUBT_"
ENV_CONFIG = "UNDOUBT_CONFIG"

_ENV_OTHERS = re.compile(
    r"UNDOUBT_(?:CONFIG|POSTGRES_BIN|TEST_.*"
    r"|(?:[A-Z0-9_]+_)?(?:SERVICE_(?:HOST|PORT)(?:_[A-Z0-9_]+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)?))"
)

_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "ledger": LedgerSettings,
    "coordinator": CoordinatorSettings,
    "recovery": RecoverySettings,
    "node": NodeSettings,
    "sidecar": SidecarSettings,
    "console": ConsoleSettings,
}
_PATHS = {
    ("node", "data"),
    *(
        (section, name)
        for section in ("ledger", "sidecar", "console")
        for name in ("tls_ca", "tls_cert", "tls_key")
    ),
    ("ledger", "tls_crl"),
    ("sidecar", "socket"),
}
_PARTICIPANTS = "participants"

KeyPath = tuple[str, ...]


class ConfigurationError(UsageError):
    """A setting is missing, unknown or of the wrong type, or the file cannot be read. ``key`` is the
    setting's whole path (``participants.orders.dsn``), None if the error is not about one setting."""

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings. ``file`` is the path of the file that they were read from, None without a file."""

    ledger: LedgerSettings = LedgerSettings()
    coordinator: CoordinatorSettings = CoordinatorSettings()
    recovery: RecoverySettings = RecoverySettings()
    node: NodeSettings = NodeSettings()
    sidecar: SidecarSettings = SidecarSettings()
    console: ConsoleSettings = ConsoleSettings()
    participants: dict[str, ParticipantSettings] = {}
    file: str | None = None

    def __post_init__(self) -> None:
        """Raises :class:`ConfigurationError` for sections that contradict each other: it would be too late to
        refuse each transaction."""
        scheme = self.ledger.url.partition(":")[0]
        if self.coordinator.protocol == "paxos" and scheme != "raft":
            raise ConfigurationError(
                'coordinator.protocol = "paxos" needs a cluster of nodes, which are its acceptors: ledger.url'
                f" = raft://…; with a ledger at {scheme}:// use 2pc or 3pc",
                key="coordinator.protocol",
            )
        agent = self.coordinator.agent
        if agent and self.participants and agent not in self.participants:
            raise ConfigurationError(
                f"coordinator.agent is {agent!r}, and there is no [participants.{agent}]",
                key="coordinator.agent",
            )


@dataclass(frozen=True, slots=True)
class _Given:
    """One value with its source. ``origin`` names the source in messages. ``text``: the value was given as a
    string, whatever the type of its key. ``folder`` is the folder that relative paths are relative to."""

    value: Any
    origin: str
    folder: Path
    text: bool = False


def load(
    source: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings for this process. ``source`` is a file's path; if it is None, the file is found as the
    module's docstring describes. If ``source`` is a mapping, nested like the file, neither a file nor the
    environment is read. ``env`` is ``os.environ`` by default. ``overrides`` is nested like the file and
    overrides all other sources.

    Raises :class:`ConfigurationError`.
    """
    given: dict[KeyPath, _Given] = {}
    file: Path | None = None
    if not isinstance(source, str | os.PathLike | Mapping | None):
        raise ConfigurationError(
            "source must be the path of a file, a mapping, ready settings or None, not of type"
            f" {type(source).__name__}"
        )
    if isinstance(source, Mapping):
        given |= _flatten(source, origin="given in code", folder=_here())
    else:
        env = os.environ if env is None else env
        file = _find(source, env)
        if file is not None:
            given |= _flatten(_read(file), origin=str(file), folder=file.parent)
        given |= _from_environment(env, [key[1] for key in given if key[0] == _PARTICIPANTS])
    given |= _flatten(overrides or {}, origin="given explicitly", folder=_here())
    return _build(given, file)


def _find(path: str | os.PathLike[str] | None, env: Mapping[str, str]) -> Path | None:
    if path is not None:
        return _absolute(path)
    if named := env.get(ENV_CONFIG):
        return _absolute(named)
    here = _here() / CONFIG_FILE
    try:
        return here if here.exists() else None
    except OSError as error:
        raise ConfigurationError(f"cannot read {here}: {error.strerror}") from None


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigurationError(f"the current directory cannot be used: {error.strerror}") from None


def _absolute(path: str | os.PathLike[str]) -> Path:
    try:
        return _here() / path_within("the configuration's path", os.fspath(path))
    except OutOfBounds as error:
        raise ConfigurationError(str(error)) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"no configuration file at {file}") from None
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not valid TOML: {error}") from None


def _flatten(data: Mapping[str, Any], *, origin: str, folder: Path) -> dict[KeyPath, _Given]:
    """Each value of ``data`` by the path of its key: two levels in sections, three in participants. Each
    participant's own path is included, so that a participant with an empty table is not lost."""
    found: dict[KeyPath, _Given] = {}
    for section, content in _named(data, "the configuration", origin).items():
        if section not in _SECTIONS and section != _PARTICIPANTS:
            raise _unknown((section,), [*_SECTIONS, _PARTICIPANTS], origin)
        outer = _table((section,), content, origin)
        tables: dict[KeyPath, Mapping[str, Any]] = {(section,): outer}
        if section == _PARTICIPANTS:
            tables = {}
            for name, value in _named(outer, section, origin).items():
                tables[section, name] = _table((section, name), value, origin)
                found[section, name] = _Given(None, origin, folder)
        for path, table in tables.items():
            for key, value in _named(table, _dotted(path), origin).items():
                _check_known((*path, key), origin)
                found[*path, key] = _Given(value, origin, folder)
    return found


def _named(table: Mapping[str, Any], where: str, origin: str) -> Mapping[str, Any]:
    """``table``, if all its keys are strings: a mapping that is given in code may have keys of other
    types."""
    for key in table:
        if not isinstance(key, str):
            raise ConfigurationError(f"{where} has a key that is not a string: {key!r:.80} ({origin})")
    return table


def _table(path: KeyPath, value: object, origin: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        example = f"[{_dotted(path)}]" + (' with dsn = "postgresql://…"' if len(path) > 1 else "")
        raise ConfigurationError(
            f"{_dotted(path)} must be a table, {example}, not a {_type_name(value)} ({origin})",
            key=_dotted(path),
        )
    return value


def _from_environment(env: Mapping[str, str], participants: Iterable[str]) -> dict[KeyPath, _Given]:
    as_written = {name.lower(): name for name in participants}
    found: dict[KeyPath, _Given] = {}
    here = _here()
    for variable, value in sorted(env.items()):
        if not variable.startswith(ENV_PREFIX) or _ENV_OTHERS.fullmatch(variable):
            continue
        section, *levels = variable.removeprefix(ENV_PREFIX).lower().split("__")
        given: Any = value
        path: KeyPath = (section, *levels)
        if section == _PARTICIPANTS and len(levels) >= 2:
            if levels[-2:] == ["sidecar", "sql"]:  # the one key of a participant that is a table
                levels.pop()
                given = {"sql": value}
            name = "__".join(levels[:-1])
            path = (section, as_written.get(name, name), levels[-1])
        origin = f"environment variable {variable}"
        depth = 3 if section == _PARTICIPANTS else 2
        if section not in {*_SECTIONS, _PARTICIPANTS} or len(path) != depth:
            raise _unknown_variable(variable)
        _check_known(path, origin)
        found[path] = _Given(given, origin, here, text=True)
    return found


def _build(given: Mapping[KeyPath, _Given], file: Path | None) -> Settings:
    tables: dict[KeyPath, dict[str, Any]] = {(name,): {} for name in _SECTIONS}
    origins: dict[KeyPath, str] = {}
    for path, value in given.items():
        if path[0] == _PARTICIPANTS and len(path) == 2:
            tables.setdefault(path, {})
            origins.setdefault(path, value.origin)
        else:
            tables.setdefault(path[:-1], {})[path[-1]] = _leaf(path, value)
            origins[path[:-1]] = value.origin
    base = file.parent if file is not None else _here()
    tables["ledger",].setdefault("url", _absolute_url(LedgerSettings().url, base))
    tables["node",].setdefault("data", str(base / NodeSettings().data))
    tables["sidecar",].setdefault("socket", str(base / SidecarSettings().socket))
    sections: dict[str, Any] = {}
    participants: dict[str, ParticipantSettings] = {}
    for path, table in tables.items():
        origin = origins.get(path, "defaults")
        if path[0] == _PARTICIPANTS:
            participants[path[1]] = _participant(path[1], table, origin)
        else:
            sections[path[0]] = _struct(path, table, _SECTIONS[path[0]], origin)
    _check_former_names(participants)
    return Settings(**sections, participants=participants, file=str(file) if file else None)


def _check_former_names(participants: Mapping[str, ParticipantSettings]) -> None:
    """Refuse a name that belongs to two participants: a branch names its participant by its present name or a
    former one, and must lead to one participant."""
    by_name = {name: name for name in participants}
    for name, settings in participants.items():
        for former in settings.was:
            key = _dotted((_PARTICIPANTS, name, "was"))
            if by_name.setdefault(former, name) != name:
                raise ConfigurationError(
                    f"{key}: {former!r} is, or was, the name of participant {by_name[former]!r} as well",
                    key=key,
                )


def _participant(name: str, table: dict[str, Any], origin: str) -> ParticipantSettings:
    path = (_PARTICIPANTS, name)
    try:
        check_participant_name(name)
    except InvalidName as error:
        raise ConfigurationError(f"{_dotted(path)}: {error} ({origin})", key=_dotted(path)) from None
    if "dsn" not in table:
        raise _missing_dsn(name, origin)
    built = _struct(path, table, ParticipantSettings, origin)
    if not isinstance(built, ParticipantSettings):
        raise TypeError(type(built))
    return built


def _struct(path: KeyPath, table: dict[str, Any], kind: type[msgspec.Struct], origin: str) -> msgspec.Struct:
    try:
        return kind(**table)
    except OutOfBounds as error:
        key = _dotted((*path, error.name))
        raise ConfigurationError(f"{key} {error.why} ({origin})", key=key) from None
    except ValueError as error:  # from __post_init__, whose message has the last part of the key
        raise ConfigurationError(f"{_dotted(path)}: {error} ({origin})", key=_dotted(path)) from None


def _leaf(path: KeyPath, given: _Given) -> Any:
    """The value of ``given`` in the type of its key. The error message shows the value only if it is from the
    environment, where a key of type string, which may hold a password, cannot fail."""
    kind = _fields(path)[path[-1]]
    found = given.value
    if given.text and kind == tuple[str, ...]:
        found = [part.strip() for part in found.split(",") if part.strip()]
    try:
        value = msgspec.convert(found, kind, strict=not given.text)
    except msgspec.ValidationError as error:
        shown = f": {given.value!r}" if given.text else ""
        why, _, place = str(error).partition(" - at `$.")  # of a key inside a table
        key = ".".join(filter(None, (_dotted(path), place.rstrip("`"))))
        raise ConfigurationError(
            f"{key}: {why[0].lower()}{why[1:]}{shown} ({given.origin})", key=key
        ) from None
    if path == ("ledger", "url"):
        return _absolute_url(value, given.folder)
    if path in _PATHS or (path[-1] == "password_file" and value is not None):
        try:
            return str(given.folder / Path(value).expanduser()) if value else value
        except RuntimeError:  # there is no such user, or the user has no home directory
            raise ConfigurationError(
                f"{_dotted(path)}: there is no home directory for {value!r} ({given.origin})",
                key=_dotted(path),
            ) from None
    return value


def _absolute_url(url: str, folder: Path) -> str:
    """``sqlite:///`` with three slashes is relative, with four absolute; other URLs stay as they are."""
    head, path = url[:10], url[10:]
    if head != "sqlite:///" or path.startswith(("/", ":")) or not path:
        return url
    return head + str(folder / path)


def _fields(path: KeyPath) -> dict[str, Any]:
    kind = ParticipantSettings if path[0] == _PARTICIPANTS else _SECTIONS[path[0]]
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


def _check_known(path: KeyPath, origin: str) -> None:
    known = _fields(path)
    if path[-1] not in known:
        raise _unknown(path, list(known), origin)


def _unknown(path: KeyPath, known: list[str], origin: str) -> ConfigurationError:
    near = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"did you mean {_dotted((*path[:-1], near[0]))}?" if near else "known there: " + ", ".join(known)
    return ConfigurationError(f"unknown key {_dotted(path)} ({origin}); {hint}", key=_dotted(path))


def _unknown_variable(variable: str) -> ConfigurationError:
    names = {
        _plain(name): name
        for section, kind in _SECTIONS.items()
        for name in (f"{ENV_PREFIX}{section}__{field.name}".upper() for field in msgspec.structs.fields(kind))
    }
    near = difflib.get_close_matches(_plain(variable), list(names), n=1, cutoff=0.8)
    hint = (
        f"did you mean {names[near[0]]}?"
        if near
        else "levels are joined by two underscores: UNDOUBT_LEDGER__URL, UNDOUBT_PARTICIPANTS__ORDERS__DSN"
    )
    return ConfigurationError(f"environment variable {variable} names no key; {hint}", key=variable)


def _plain(variable: str) -> str:
    return variable.lower().replace("_", "")


def _missing_dsn(name: str, origin: str) -> ConfigurationError:
    key = f"{_PARTICIPANTS}.{name}.dsn"
    return ConfigurationError(
        f'{key} is missing ({origin}); for example dsn = "postgresql://app@host/db"', key=key
    )


def _type_name(value: object) -> str:
    return {str: "string", bool: "boolean", int: "number", float: "number", list: "list"}.get(
        type(value), type(value).__name__
    )


def _dotted(path: KeyPath) -> str:
    return ".".join(path)
