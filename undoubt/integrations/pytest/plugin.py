"""Options and fixtures; :mod:`undoubt.integrations.pytest` lists them. What they need is imported when they
are used, so that other tests do not wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import undoubt.sync

SESSION_TTL_S = 1.0
"""How long the ledger keeps the session of a process that has died: the least that it takes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("undoubt")
    group.addoption(
        "--undoubt-dsn",
        action="append",
        default=[],
        help="a superuser's dsn of a running PostgreSQL server for the databases of undoubt's fixtures; may"
        " be repeated. Without it servers are started",
    )
    parser.addini(
        "undoubt_participants", "names of the databases of undoubt's fixtures", "args", ["orders", "payments"]
    )


@pytest.fixture(scope="session")
def undoubt_participants(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The names of the databases."""
    return tuple(request.config.getini("undoubt_participants"))


@pytest.fixture(scope="session")
def undoubt_servers(
    request: pytest.FixtureRequest, undoubt_participants: tuple[str, ...]
) -> Iterator[dict[str, str]]:
    """The dsn of a real server for each database, by name."""
    from undoubt.integrations.pytest.databases import servers  # noqa: PLC0415

    with servers(undoubt_participants, request.config.getoption("--undoubt-dsn")) as dsns:
        yield dsns


@pytest.fixture(scope="session")
def undoubt_schema() -> Callable[[str, str], object]:
    """Override it: returns a function ``(name, dsn)`` that makes the tables of one database."""
    return lambda name, dsn: None


@pytest.fixture(scope="session")
def undoubt_templates(
    undoubt_servers: dict[str, str], undoubt_schema: Callable[[str, str], object]
) -> Iterator[dict[str, str]]:
    """A database with the tables for each name, which each test gets a copy of."""
    from contextlib import ExitStack  # noqa: PLC0415

    from undoubt.integrations.pytest.databases import template  # noqa: PLC0415

    with ExitStack() as stack:
        yield {
            name: stack.enter_context(template(server, name, undoubt_schema))
            for name, server in undoubt_servers.items()
        }


@pytest.fixture
def undoubt_databases(
    undoubt_servers: dict[str, str], undoubt_templates: dict[str, str]
) -> Iterator[dict[str, str]]:
    """The dsns of new databases, by name. A test that leaves something prepared in them fails."""
    from undoubt.integrations.pytest.databases import copies  # noqa: PLC0415

    with copies(undoubt_servers, undoubt_templates) as dsns:
        yield dsns


@pytest.fixture
def undoubt_settings(undoubt_databases: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    """A configuration over the databases, for ``undoubt.connect``."""
    return {
        "ledger": {"url": f"sqlite:///{tmp_path / 'undoubt.db'}"},
        "coordinator": {"session_ttl_s": SESSION_TTL_S},
        "participants": {name: {"dsn": dsn} for name, dsn in undoubt_databases.items()},
    }


@pytest.fixture
def undoubt_config(undoubt_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as a file; ``UNDOUBT_CONFIG`` names it, so that ``undoubt.connect()`` of the application finds
    it."""
    lines = []
    for section, values in undoubt_settings.items():
        tables = values.items() if section == "participants" else [("", values)]
        for name, table in tables:
            lines.append(f"[{section}.{name}]" if name else f"[{section}]")
            lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    path = tmp_path / "undoubt.toml"
    path.write_text("\n".join(lines))
    monkeypatch.setenv("UNDOUBT_CONFIG", str(path))
    return path


def _toml(value: object) -> str:
    from json import dumps  # noqa: PLC0415

    return dumps(value)


@pytest.fixture
def undoubt_coordinator(undoubt_settings: dict[str, Any]) -> Iterator[undoubt.sync.Coordinator]:
    """A coordinator over the databases, for threads. A coroutine opens its own by
    ``undoubt.connect(undoubt_settings)``."""
    from undoubt.sync import connect  # noqa: PLC0415

    with connect(undoubt_settings) as coordinator:
        yield coordinator


@pytest.fixture
def crash_at() -> Callable[..., None]:
    """``crash_at(step, function, *arguments)``: see :func:`undoubt.integrations.pytest.crash.crash_at`."""
    from undoubt.integrations.pytest.crash import crash_at  # noqa: PLC0415

    return crash_at


@pytest.fixture
def undoubt_recover(request: pytest.FixtureRequest, undoubt_settings: dict[str, Any]) -> Callable[..., None]:
    """``undoubt_recover()``: returns once nothing of the test is in doubt."""
    from undoubt.integrations.pytest.recover import recover  # noqa: PLC0415

    used = "undoubt_coordinator" in request.fixturenames
    coordinator = request.getfixturevalue("undoubt_coordinator") if used else None
    return lambda timeout=60.0: recover(undoubt_settings, coordinator, timeout)
