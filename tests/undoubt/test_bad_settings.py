"""Every setting with values that it cannot have, from a mapping, from the environment and as ready settings:
refused by its key, when it is given. Generated from the settings' types, so that a new one is judged too."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from undoubt.cli import main
from undoubt.config import ConfigurationError, load
from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.settings import CoordinatorSettings, LedgerSettings
from undoubt.participants.bounds import OutOfBounds
from undoubt.participants.settings import ParticipantSettings
from undoubt.recovery.settings import RecoverySettings

SECTIONS: dict[str, type[msgspec.Struct]] = {
    "ledger": LedgerSettings,
    "coordinator": CoordinatorSettings,
    "recovery": RecoverySettings,
    "node": NodeSettings,
    "participants.a": ParticipantSettings,
}
NO_TEXT = ("\0", "a\0b", "\udcff", "x" * 200_000)
NO_PATH = {
    "ledger.url": (
        "",
        "sqlite:////",
        "sqlite:///" + "x" * 201,
        "sqlite:///a/\0",
        f"sqlite:///{'x' * 300}/l.db",
    ),
    "node.data": ("", "/", "x" * 256, "~nobody-of-that-name/x"),
    "ledger.tls_ca": ("x" * 256, "/"),
    "ledger.tls_crl": ("x" * 256, "/"),
    "participants.a.password_file": ("", "/", "x" * 256, f"{'x' * 256}/a", "~nobody-of-that-name/x"),
    "participants.a.schema_owners": ("x" * 64,),
    "participants.a.owners": ("x" * 64,),
    "ledger.schema_owners": ("x" * 64,),
    "participants.a.was": ("a b", "-", "x" * 64),
    "participants.a.other_ledgers": ("a b", "-", "x" * 64),
    "participants.a.driver": ("", "pg8000"),
    "participants.a.init": ("", "module", ":", "a:b:c"),
    "coordinator.protocol": ("", "2PC"),
    "coordinator.termination": ("", "QUORUM"),
}
NO_NUMBER = ("", "x", "nan", "inf", "-1", "1e999", "9" * 5_000, "\0", "1,5", "0x10")
WRONG_TYPES: tuple[object, ...] = (None, b"x", 1 + 0j, object(), {}, {"a": "b"}, [1])


def settings() -> Iterator[tuple[str, Any]]:
    for section, kind in SECTIONS.items():
        yield from _settings_of(section, kind)


def _settings_of(section: str, kind: type[msgspec.Struct]) -> Iterator[tuple[str, Any]]:
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _settings_of(f"{section}.{field.name}", field.type)
        else:
            yield f"{section}.{field.name}", field.type


def _texts(kind: Any) -> bool:
    return kind is str or (isinstance(kind, types.UnionType) and str in typing.get_args(kind))


def bad_texts() -> Iterator[tuple[str, str]]:
    """As they can stand in a file or in the environment."""
    for key, kind in settings():
        if _texts(kind) or kind == tuple[str, ...]:
            yield from ((key, value) for value in (*NO_TEXT, *NO_PATH.get(key, ())))
        elif kind is not bool:
            yield from ((key, value) for value in NO_PATH.get(key, NO_NUMBER))
        else:
            yield from ((key, value) for value in ("", "x", "2", "\0"))


def source(key: str, value: object) -> dict[str, Any]:
    inner: Any = value
    for depth, name in reversed([*enumerate(key.split("."))]):
        inner = {name: inner}
        if depth == 2 and key.startswith("participants.") and name != "dsn":
            inner["dsn"] = "postgresql://x"
    return dict(inner)


@pytest.mark.parametrize(("key", "value"), [*bad_texts()], ids=lambda text: f"{text[:24]!r}")
def test_a_bad_value_is_refused_by_its_key(key: str, value: str) -> None:
    """Broken if it is met later: by a file, a database or a message of the cluster, as a bug of undoubt."""
    kind = dict(settings())[key]
    env = {"UNDOUBT_" + key.replace(".", "__").upper(): value}
    if key.startswith("participants.") and not key.endswith(".dsn"):
        env["UNDOUBT_PARTICIPANTS__A__DSN"] = "postgresql://x"
    with pytest.raises(ConfigurationError) as by_variable:
        load(env=env)
    if kind != tuple[str, ...] and not _texts(kind):
        assert key == by_variable.value.key
        return
    with pytest.raises(ConfigurationError) as in_code:
        load(source(key, [value] if kind == tuple[str, ...] else value))
    for error in (by_variable.value, in_code.value):
        assert error.key == key
        assert str(error).startswith(key)
        assert len(str(error)) < 1_000


@pytest.mark.parametrize("value", WRONG_TYPES, ids=lambda value: f"{value!r:.12}")
@pytest.mark.parametrize(("key", "kind"), [*settings()], ids=lambda text: f"{text!s:.40}")
def test_a_wrong_type_is_refused_by_its_key(key: str, kind: Any, value: object) -> None:
    """From code, as a mapping and as ready settings."""
    if value is None and not (_texts(kind) and kind is str):
        return  # text that may be None, or what is judged by its own room's type
    with pytest.raises(ConfigurationError) as caught:
        load(source(key, value))
    assert caught.value.key == key


@pytest.mark.parametrize(("key", "kind"), [*settings()], ids=lambda text: f"{text!s:.40}")
def test_ready_settings_are_judged_as_well(key: str, kind: Any) -> None:
    """Broken if only what comes from a file is judged, and not what an application makes itself."""
    if isinstance(kind, type) and (
        kind is bool or (issubclass(kind, msgspec.Struct | str) and kind is not str)
    ):
        return
    section, name = key.rsplit(".", 1)
    given: dict[str, Any] = {"dsn": "postgresql://x"} if section == "participants.a" else {}
    for value in (object(), b"x", ["a"], ("a\0",), "a\0"):
        with pytest.raises(OutOfBounds) as caught:
            SECTIONS[section](**(given | {name: value}))
        assert caught.value.name == name


@pytest.mark.parametrize("value", [{1: 2}, {"ledger": {1: 2}}, {"participants": {1: {}}}, {None: None}])
def test_a_key_that_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="not a string"):
        load(value)


@pytest.mark.parametrize("value", ["\0", "x" * 300, "/", "~/\0"])
def test_a_path_of_the_configuration_that_can_be_none(value: str) -> None:
    for given, env in ((value, {}), (None, {"UNDOUBT_CONFIG": value})):
        with pytest.raises(ConfigurationError):
            load(given, env=env)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("UNDOUBT_LEDGER__URL", "sqlite:////"),
        ("UNDOUBT_LEDGER__URL", "sqlite:///" + "x" * 300),
        ("UNDOUBT_LEDGER__SCHEMA_OWNERS", "x" * 64),
        ("UNDOUBT_PARTICIPANTS__A__PASSWORD_FILE", "x" * 300),
        ("UNDOUBT_CONFIG", "x" * 300),
        ("UNDOUBT_NODE__DATA", "~nobody-of-that-name"),
    ],
)
def test_every_command_exits_with_2(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDOUBT_PARTICIPANTS__A__DSN", "postgresql://x")
    monkeypatch.setenv(variable, value)
    for words in (["doctor"], ["ledger", "init"], ["indoubt", "list"], ["ledger", "restore", "-y"], ["node"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2, words
