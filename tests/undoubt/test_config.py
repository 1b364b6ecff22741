"""Configuration: what wins over what, what bad input gets, and that no password is ever shown."""

from __future__ import annotations

import copy
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from rich.console import Console

from undoubt import connect
from undoubt.cli import main
from undoubt.config import ConfigurationError, Settings, load
from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.settings import CoordinatorSettings, LedgerSettings
from undoubt.participants.errors import UndoubtError
from undoubt.participants.settings import ParticipantSettings
from undoubt.recovery.settings import RecoverySettings

ORDERS = "[participants.orders]\ndsn = 'postgresql://app@db/orders'\n"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No undoubt.toml of the developer's own folder may leak in."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def write(folder: Path, text: str, name: str = "undoubt.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def fails(
    source: str | Path | Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load(source, env=env or {})
    assert isinstance(caught.value, UndoubtError)
    return caught.value


# ------------------------------------------------------------------------------------------ what wins


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, ORDERS + "[coordinator]\ntimeout_s = 1\nsession_ttl_s = 11\ndrain_s = 21\n")
    env = {"UNDOUBT_COORDINATOR__SESSION_TTL_S": "12", "UNDOUBT_COORDINATOR__DRAIN_S": "22"}
    got = load(file, env=env, overrides={"coordinator": {"drain_s": 23.0}}).coordinator
    assert (got.timeout_s, got.session_ttl_s, got.drain_s, got.protocol) == (1.0, 12.0, 23.0, "2pc")


def test_file_is_searched_in_order_flag_variable_current_directory(tmp_path: Path) -> None:
    write(Path.cwd(), "[coordinator]\nname = 'here'\n")
    named = write(tmp_path, "[coordinator]\nname = 'named'\n", "named.toml")
    flag = write(tmp_path, "[coordinator]\nname = 'flag'\n", "flag.toml")
    env = {"UNDOUBT_CONFIG": str(named)}
    assert load(env={}).coordinator.name == "here"
    assert load(env=env).coordinator.name == "named"
    assert load(flag, env=env).coordinator.name == "flag"
    assert load(env=env).file == str(named)


def test_without_any_file_the_defaults_hold() -> None:
    got = load(env={})
    assert got.participants == {}
    assert got.file is None
    assert got.ledger.url == f"sqlite:///{Path.cwd() / 'undoubt.db'}"


def test_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("UNDOUBT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UNDOUBT_COORDINATOR__NAME", "me")
    assert load().coordinator.name == "me"


def test_a_mapping_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings made in code must not change because of the folder or the environment it runs in."""
    write(Path.cwd(), "[coordinator]\nname = 'here'\n")
    monkeypatch.setenv("UNDOUBT_COORDINATOR__NAME", "variable")
    source = {"participants": {"orders": {"dsn": "dbname=orders"}}}
    kept = copy.deepcopy(source)
    got = load(source)
    assert got.coordinator.name == ""
    assert got.participants["orders"].dsn == "dbname=orders"
    assert source == kept


# ------------------------------------------------------------------------------------------ environment


def test_participants_from_the_environment_alone() -> None:
    got = load(
        env={
            "UNDOUBT_PARTICIPANTS__ORDERS__DSN": "postgresql://orders",
            "UNDOUBT_PARTICIPANTS__ORDERS__CONNECTIONS_MAX": "7",
            "UNDOUBT_PARTICIPANTS__PAY_EU__DSN": "postgresql://pay",
            "UNDOUBT_PARTICIPANTS__PAY_EU__POOLER": "true",
            "UNDOUBT_PARTICIPANTS__A__B__DSN": "postgresql://ab",
        }
    ).participants
    assert sorted(got) == ["a__b", "orders", "pay_eu"]
    assert got["orders"].connections_max == 7
    assert got["pay_eu"].pooler is True


def test_owners_and_former_names() -> None:
    """Broken if a participant's roles cannot be given as a list, or two participants have one name."""
    got = load(
        env={
            "UNDOUBT_PARTICIPANTS__SALES__DSN": "postgresql://sales",
            "UNDOUBT_PARTICIPANTS__SALES__OWNERS": "app, clerk",
            "UNDOUBT_PARTICIPANTS__SALES__WAS": "orders",
        }
    ).participants["sales"]
    assert (got.owners, got.was) == (("app", "clerk"), ("orders",))
    for was in ({"was": ["sales"]}, {"was": ["orders"]}):
        tables = {"sales": {"dsn": "dbname=a", "was": ["orders"]}, "stock": {"dsn": "dbname=b", **was}}
        with pytest.raises(ConfigurationError, match=r"participants\.(stock|sales)\.was") as refused:
            load({"participants": tables})
        assert refused.value.key in {"participants.stock.was", "participants.sales.was"}
    with pytest.raises(ConfigurationError, match=r"participants\.sales.*not a participant name"):
        load({"participants": {"sales": {"dsn": "dbname=a", "was": ["or:ders"]}}})


def test_environment_completes_a_participant_of_the_file_whatever_its_case(tmp_path: Path) -> None:
    """The DSN with the password comes from the environment, the rest from the file; a second participant
    that differs only in case would silently take the password instead."""
    file = write(tmp_path, "[participants.Orders]\n[participants.pay]\ndsn='x'\npooler=true\n")
    got = load(
        file,
        env={"UNDOUBT_PARTICIPANTS__ORDERS__DSN": "postgresql://o", "UNDOUBT_PARTICIPANTS__PAY__DSN": "y"},
    )
    assert sorted(got.participants) == ["Orders", "pay"]
    assert got.participants["Orders"].dsn == "postgresql://o"
    assert got.participants["pay"].dsn == "y"
    assert got.participants["pay"].pooler is True


@pytest.mark.parametrize(
    "variable",
    [
        "UNDOUBT_CONFIG",
        "UNDOUBT_POSTGRES_BIN",
        "UNDOUBT_TEST_DSN",
        "UNDOUBT_SERVICE_HOST",
        "UNDOUBT_SERVICE_PORT_HTTP",
        "UNDOUBT_PORT",
        "UNDOUBT_PORT_7400_TCP_ADDR",
        "UNDOUBT_SIDECAR_SERVICE_PORT",
        "UNDOUBT_SIDECAR_PORT_8080_TCP",
        "UNDOUBTED_THING",
        "_UNDOUBT_COMPLETE",
    ],
)
def test_variables_of_others_are_left_alone(variable: str) -> None:
    """Kubernetes puts UNDOUBT_SERVICE_HOST into every container beside a service called undoubt: failing on
    it would take the whole application down."""
    assert load(env={variable: ""}) == load(env={})


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("UNDOUBT_LEDGER_URL", "did you mean UNDOUBT_LEDGER__URL?"),
        ("UNDOUBT_COORDINATOR_TIMEOUT_S", "did you mean UNDOUBT_COORDINATOR__TIMEOUT_S?"),
        ("UNDOUBT_LEDGER__URI", "did you mean ledger.url?"),
        ("UNDOUBT_PARTICIPANTS__ORDERS__DNS", "unknown key participants.orders.dns"),
        ("UNDOUBT_PARTICIPANTS__ORDERS", "two underscores"),
        ("UNDOUBT_LEDGER__URL__X", "did you mean UNDOUBT_LEDGER__URL?"),
        ("UNDOUBT_X", "two underscores"),
        ("UNDOUBT_", "two underscores"),
    ],
)
def test_a_variable_that_names_no_key_is_an_error(variable: str, said: str) -> None:
    error = fails(env={variable: "secret"})
    assert said in str(error)
    assert variable in str(error)
    assert "secret" not in str(error)


def test_a_variable_of_the_wrong_type_names_key_and_variable() -> None:
    error = fails(env={"UNDOUBT_COORDINATOR__TIMEOUT_S": "soon"})
    assert error.key == "coordinator.timeout_s"
    assert "UNDOUBT_COORDINATOR__TIMEOUT_S" in str(error)
    assert "'soon'" in str(error)


# ------------------------------------------------------------------------------------------ bad files


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        (
            "[participants.orders]\ndns = 'x'\n",
            "participants.orders.dns",
            "did you mean participants.orders.dsn?",
        ),
        ("[ledger]\nurll = 'x'\n", "ledger.urll", "did you mean ledger.url?"),
        ("[ledgr]\nurl = 'x'\n", "ledgr", "did you mean ledger?"),
        ("[zzz]\n", "zzz", "known there: ledger"),
        ("[ledger]\nurl = 3\n", "ledger.url", "expected `str`, got `int`"),
        ("[coordinator]\ntimeout_s = '5'\n", "coordinator.timeout_s", "expected `float`, got `str`"),
        ("[coordinator]\ntimeout_s = -5\n", "coordinator.timeout_s", "must be more than 0 to"),
        ("[recovery]\nparallel = 1.5\n", "recovery.parallel", "expected `int`"),
        ("[participants.orders]\n", "participants.orders.dsn", "is missing"),
        ("[participants]\norders = 'postgresql://x'\n", "participants.orders", "must be a table"),
        ("ledger = 'sqlite:///x'\n", "ledger", "must be a table"),
        ("participants = []\n", "participants", "must be a table"),
        ("[participants.'a b']\ndsn = 'x'\n", "participants.a b", "not a participant name"),
        (f"[participants.{'n' * 64}]\ndsn = 'x'\n", f"participants.{'n' * 64}", "too long"),
        ("[participants.o]\ndsn='x'\ndriver='pg8000'\n", "participants.o.driver", "'pg8000' is not one of"),
    ],
)
def test_a_bad_key_is_named_with_its_whole_path_and_file(
    tmp_path: Path, text: str, key: str, said: str
) -> None:
    file = write(tmp_path, text)
    error = fails(file)
    assert error.key == key
    assert key in str(error)
    assert said in str(error)
    assert str(file) in str(error)


def test_type_errors_do_not_print_values(tmp_path: Path) -> None:
    error = fails(write(tmp_path, "[participants.orders]\ndsn = ['postgresql://app:secret@db/orders']\n"))
    assert "secret" not in str(error)
    assert error.__cause__ is None


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """Falling back to the defaults would open an empty ledger somewhere else."""
    assert "no configuration file" in str(fails(tmp_path / "none.toml"))
    assert "none.toml" in str(fails(env={"UNDOUBT_CONFIG": str(tmp_path / "none.toml")}))


def test_files_that_cannot_be_read_or_parsed(tmp_path: Path) -> None:
    assert "cannot read" in str(fails(tmp_path))
    assert "not valid TOML" in str(fails(write(tmp_path, "[ledger")))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert "not valid TOML" in str(fails(binary))
    if os.geteuid() != 0:
        secret = write(tmp_path, ORDERS, "secret.toml")
        secret.chmod(stat.S_IWUSR)
        assert "cannot read" in str(fails(secret))


# ------------------------------------------------------------------------------------------ paths


def test_relative_paths_in_a_file_are_relative_to_its_folder(tmp_path: Path) -> None:
    """Else the same file read from another directory means another, empty ledger."""
    file = write(
        tmp_path,
        "[ledger]\nurl='sqlite:///var/l.db'\n[participants.o]\ndsn='x'\npassword_file='pw'\n",
    )
    got = load(file, env={})
    assert got.ledger.url == f"sqlite:///{tmp_path}/var/l.db"
    assert got.participants["o"].password_file == str(tmp_path / "pw")
    assert load(write(tmp_path, ORDERS), env={}).ledger.url == f"sqlite:///{tmp_path}/undoubt.db"


def test_relative_paths_from_elsewhere_are_relative_to_the_current_directory(tmp_path: Path) -> None:
    file = write(tmp_path, "[ledger]\nurl='sqlite:///file.db'\n")
    here = Path.cwd()
    assert load(file, env={"UNDOUBT_LEDGER__URL": "sqlite:///e.db"}).ledger.url == f"sqlite:///{here}/e.db"
    assert load({"ledger": {"url": "sqlite:///c.db"}}).ledger.url == f"sqlite:///{here}/c.db"
    flag = load(file, env={}, overrides={"ledger": {"url": "sqlite:///f.db"}})
    assert flag.ledger.url == f"sqlite:///{here}/f.db"


@pytest.mark.parametrize("url", ["sqlite:////abs/l.db", "postgresql+psycopg://h/l", "raft://a,b,c"])
def test_other_urls_stay_as_they_are(url: str) -> None:
    assert load({"ledger": {"url": url}}).ledger.url == url


# ------------------------------------------------------------------------------------------ secrets


def test_no_representation_of_settings_shows_a_password() -> None:
    got = load(
        {
            "ledger": {"url": "postgresql+psycopg://l:secret@db/ledger"},
            "participants": {
                "a": {"dsn": "postgresql://app:secret@db/a"},
                "b": {"dsn": "host=db password=secret"},
            },
        }
    )
    console = Console(width=400)
    with console.capture() as rich:
        console.print(got, got.participants["a"], got.ledger)
    shown = f"{got!r} {got} {got.participants['a']!r} {got.ledger!r} {rich.get()}"
    assert "secret" not in shown
    assert "app:***@db" in shown


# ------------------------------------------------------------------------------------------ bounds

_DURATIONS = {
    "ledger": ("retention_s", "history_s", "request_timeout_s"),
    "coordinator": ("timeout_s", "session_ttl_s", "drain_s"),
    "recovery": ("interval_s", "backoff_max_s", "deadlock_interval_s"),
    "node": ("heartbeat_s", "election_timeout_s"),
}
_PARTICIPANT_DURATIONS = ("connections_idle_s", "connect_timeout_s", "statement_timeout_s")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "-1", "4e8"])
@pytest.mark.parametrize("key", [f"{section}.{key}" for section, keys in _DURATIONS.items() for key in keys])
def test_a_duration_out_of_bounds_is_refused_by_its_key(tmp_path: Path, key: str, value: str) -> None:
    """Broken if it ends a task in the background, hours later, or a node."""
    section, name = key.split(".")
    error = fails(write(tmp_path, f"[{section}]\n{name} = {value}\n"))
    assert error.key == key
    assert str(error).startswith(f"{key} must be ")
    assert fails(env={f"UNDOUBT_{section}__{name}".upper(): value}).key == key


@pytest.mark.parametrize("value", ["nan", "inf", "1e300", "-1"])
@pytest.mark.parametrize("name", _PARTICIPANT_DURATIONS)
def test_a_participants_duration_out_of_bounds_is_refused_by_its_key(
    tmp_path: Path, name: str, value: str
) -> None:
    error = fails(write(tmp_path, f"{ORDERS}{name} = {value}\n"))
    assert error.key == f"participants.orders.{name}"


def test_every_duration_of_the_settings_is_judged() -> None:
    """Broken if a setting is added without bounds."""
    judged = {f"{section}.{key}" for section, keys in _DURATIONS.items() for key in keys}
    judged |= {f"participants.{key}" for key in _PARTICIPANT_DURATIONS}
    sections: dict[str, type[msgspec.Struct]] = {
        "ledger": LedgerSettings,
        "coordinator": CoordinatorSettings,
        "recovery": RecoverySettings,
        "node": NodeSettings,
        "participants": ParticipantSettings,
    }
    durations = {
        f"{section}.{field.name}"
        for section, kind in sections.items()
        for field in msgspec.structs.fields(kind)
        if field.type is float
    }
    assert durations == judged


@pytest.mark.parametrize("url", ["sqlite:///u.db", "postgresql+psycopg://ledger@db/ledger"])
@pytest.mark.parametrize("command", ["doctor", "ledger check", "audit", "sidecar", "node"])
def test_paxos_without_a_cluster_is_refused_when_the_settings_are_read(
    url: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken if everything starts, doctor is content, and then each transaction fails."""
    write(Path(), f'[ledger]\nurl = "{url}"\n[coordinator]\nprotocol = "paxos"\n')
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == 2
    assert 'coordinator.protocol = "paxos" needs a cluster' in capsys.readouterr().err


async def test_ready_settings_with_paxos_and_no_cluster_cannot_be_made() -> None:
    with pytest.raises(ConfigurationError, match="needs a cluster"):
        Settings(coordinator=CoordinatorSettings(protocol="paxos"))
    kept = Settings(
        ledger=LedgerSettings(url="raft://a:7400,b:7400,c:7400"),
        coordinator=CoordinatorSettings(protocol="paxos"),
    )
    with pytest.raises(ConfigurationError, match="needs a cluster"):
        replace(kept, ledger=LedgerSettings())
    with pytest.raises(ConfigurationError, match="needs a cluster"):
        async with connect({"coordinator": {"protocol": "paxos"}}):
            pass
