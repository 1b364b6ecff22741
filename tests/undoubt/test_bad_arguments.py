"""Every parameter of every public call of the library with values that it cannot have: ``UsageError``, which
names it, before anything is begun. Generated from the signatures, so that a new parameter is judged too."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

import undoubt
import undoubt.sync
from tests.coordinator.stage import Stage
from tests.undoubt.sync.support import Stage as SyncStage
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.transaction import Transaction
from undoubt.integrations.sqlalchemy import AsyncSession, Session
from undoubt.participants.contract import XactStatus
from undoubt.participants.errors import UsageError
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.scripted import Script, ScriptedParticipant
from undoubt.participants.settings import ParticipantSettings

NAN = float("nan")


class Nothing:
    """Of no type that anything takes."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING = Nothing()
PROTOCOLS: tuple[Any, ...] = ("", 0, False, [], {}, b"2pc", "2PC", NAN, NOTHING)
NAMES: tuple[Any, ...] = (None, 5, b"a", ["a"], {}, "a\0", NAN, NOTHING)
BAD: dict[str, tuple[Any, ...]] = {
    "timeout": (0, -1, NAN, float("inf"), 1e300, "5", b"5", True, False, [5], [], NOTHING),
    "protocol": PROTOCOLS,
    "agent": ("", 5, b"a", ["a"], "a\0", "nobody", False, NAN, NOTHING),
    "key": ("", 5, b"k", ["k"], "a\0", "x" * 201, False, NAN, NOTHING),
    "prepares_all": (None, 0, 1, 5, "no", []),
    "records_all": (None, 0, 1, 5, "no", []),
    "retries": (-1, 1.5, "3", None, True, [], 2**80),
    "function": (None, 5, "x", [], NOTHING),
    "name": NAMES,
    "names": NAMES,
    "txid": (None, 5, "", "zzz", b"a", [], {}, NAN, "1-4f1d0c9a77b2e815.-1", "\0"),
    "cause": (None, "x", 5, ValueError, []),
    "participant": (None, "alpha", 5, [], NOTHING, ScriptedParticipant),
    "opener": (None, "alpha", 5, NOTHING),
    "source": (5, 0, False, b"x", [], (), {1: 2}, {"ledger": 5}, {"ledger": {1: 2}}, "\0", NOTHING),
    "observe": (5, "x", [], False, 0),
    "recover": (None, 0, 1, "no", []),
    "metrics": (5, "x", [], False, NOTHING, undoubt.UndoubtError),
    "handles": (None, "", "threads", [], 0, b"sync"),
    "on_connect": (5, "x", [], False, {"orders": 5}, {5: print}, {"orders": "x"}),
    "create": (None, 0, 1, 5, "no", []),
    "ledger": (None, 5, "sqlite:///x", NOTHING),
    "settings": (5, {}, "x", undoubt.Settings(), False),
    "meter": (5, "x", NOTHING, False),
    "opening": (None, 5, "x", {}),
    "coordinator": (None, 5, "x", NOTHING, Coordinator),
    "participants": (None, 5, [], "x", {"orders": "orders"}, {sa.create_engine("postgresql+psycopg://"): 5}),
    "twophase": (None, 0, 1, "no", True),
    "payload": (NOTHING, (1,), {1: 2}, [NAN], 2**64, b"x" * (2**20 + 1), "\ud800", ["\ud800"]),
    "topic": ("", 5, b"a", ["a"], {}, "a\0", "x" * 201, NAN, NOTHING),
    "headers": (
        5,
        "a: b",
        ["a"],
        {"a": 5},
        {5: "a"},
        {"a b": "x"},
        {"Host": "x"},
        {"Undoubt-Key": "x"},
        {"a": "x\r\nb: y"},
        {"a": "1", "A": "2"},
        {"a": "x" * 9_000},
    ),
}
MENTIONS = {
    "function": r"run\(\)",
    "txid": "transaction id",
    "names": "name",
    "source": r"source|ledger|key|path",
}
OF_APPLICATIONS = {"self", "args", "arguments", "options"}
"""What is passed on as it is."""


def matrix(*calls: Callable[..., Any]) -> list[Any]:
    return [
        pytest.param(call, parameter, value, id=f"{call.__qualname__}-{parameter}-{value!r:.24}")
        for call in calls
        for parameter in inspect.signature(call).parameters
        if parameter not in OF_APPLICATIONS
        for value in BAD[parameter]
    ]


def refused(parameter: str) -> contextlib.AbstractContextManager[Any]:
    return pytest.raises(UsageError, match=MENTIONS.get(parameter, parameter))


def arguments(call: Callable[..., Any], parameter: str, value: object, *, work: object) -> tuple[Any, Any]:
    """Good ones for what has no default, and ``value``."""
    good = {"function": work, "cause": ValueError("x"), "txid": "1-4f1d0c9a77b2e815.1", "name": "alpha"}
    given = dict[str, Any]()
    for name, found in inspect.signature(call).parameters.items():
        if found.kind is inspect.Parameter.VAR_POSITIONAL and name == parameter:
            return ("alpha", value), {}
        if name == parameter:
            given[name] = value
        elif found.default is inspect.Parameter.empty and name in good:
            given[name] = good[name]
    function = given.pop("function", None)
    return (() if "function" not in inspect.signature(call).parameters else (function,)), given


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage({"alpha": Script(), "beta": Script()})
    await made.coordinator.start()
    yield made
    await made.coordinator.close()


async def touched(tx: Any) -> None:
    await tx.branch("alpha")


async def finished(made: object) -> None:
    if isinstance(made, Awaitable):
        await made


@pytest.mark.parametrize(
    ("call", "parameter", "value"),
    matrix(
        Coordinator.transaction,
        Coordinator.run,
        Coordinator.outcome,
        Coordinator.cancel,
        Coordinator.add_participant,
        Coordinator.remove_participant,
    ),
)
async def test_calls_of_a_coordinator(
    stage: Stage, call: Callable[..., Any], parameter: str, value: object
) -> None:
    """Broken if a wrong value is a default, an error of Python's from deep inside, or commits something."""
    positional, named = arguments(call, parameter, value, work=touched)
    with refused(parameter):
        await finished(call(stage.coordinator, *positional, **named))
    assert stage.participants["alpha"].branches == []
    await stage.coordinator.run(touched)


@pytest.mark.parametrize(("call", "parameter", "value"), matrix(Transaction.branch, Transaction.adopt))
async def test_calls_of_a_transaction(
    stage: Stage, call: Callable[..., Any], parameter: str, value: object
) -> None:
    """The transaction goes on."""
    async with stage.coordinator.transaction() as tx:
        with refused(parameter):
            await call(tx, value)
        await tx.branch("alpha")
    [branch] = stage.participants["alpha"].branches
    assert stage.participants["alpha"].xact_statuses[branch.xid] is XactStatus.COMMITTED


@pytest.mark.parametrize(("call", "parameter", "value"), matrix(Transaction.publish))
async def test_what_a_transaction_publishes(
    stage: Stage, call: Callable[..., Any], parameter: str, value: object
) -> None:
    """Broken if a message that cannot be delivered is stored, or a branch is begun for it."""
    async with stage.coordinator.transaction() as tx:
        with refused(parameter):
            await call(tx, **({"name": "alpha", "payload": b"x"} | {parameter: value}))
        assert stage.participants["alpha"].branches == []


@pytest.mark.parametrize(
    ("call", "parameter", "value"),
    [one for one in matrix(Coordinator.__init__) if one.values[1] not in {"ledger", "participants"}],
)
async def test_a_coordinator_that_is_made_in_code(
    stage: Stage, call: object, parameter: str, value: Any
) -> None:
    with refused(parameter):
        Coordinator(stage.coordinator.ledger, stage.coordinator.participants, **{parameter: value})


@pytest.mark.parametrize("value", BAD["ledger"], ids=repr)
async def test_a_coordinator_over_what_is_no_ledger(stage: Stage, value: Any) -> None:
    with refused("ledger"):
        Coordinator(value, stage.coordinator.participants)
    with refused("participants"):
        Coordinator(stage.coordinator.ledger, value)


PARTICIPANT = BAD | {
    "settings": (None, 5, {}, "postgresql://x"),
    "ledger_id": (None, 5, "", "-", ["a"], "a\0"),
}


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        (parameter, value)
        for parameter in inspect.signature(PostgresParticipant).parameters
        for value in PARTICIPANT[parameter]
        if not isinstance(value, dict) or parameter == "settings"
    ],
    ids=lambda value: f"{value!r:.24}",
)
async def test_a_participant_that_is_made_in_code(parameter: str, value: object) -> None:
    given: dict[str, Any] = {
        "name": "a",
        "settings": ParticipantSettings(dsn="postgresql://x"),
        "ledger_id": "abcdefghij",
    }
    with pytest.raises(UsageError, match=parameter.replace("_", ".")):
        PostgresParticipant(**(given | {parameter: value}))


@pytest.mark.parametrize(("call", "parameter", "value"), matrix(undoubt.connect))
async def test_connect(
    call: object, parameter: str, value: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a wrong ``create`` makes a ledger, or anything is opened before all of it is judged."""
    monkeypatch.chdir(tmp_path)
    source = {"ledger": {"url": f"sqlite:///{tmp_path}/l.db"}}
    given: dict[str, Any] = {"source": source, "create": True, parameter: value}
    with refused(parameter):
        async with undoubt.connect(**given):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("call", "parameter", "value"), matrix(undoubt.sync.connect))
def test_the_synchronous_connect(
    call: object, parameter: str, value: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = {"ledger": {"url": f"sqlite:///{tmp_path}/l.db"}}
    given: dict[str, Any] = {"source": source, "create": True, parameter: value}
    with refused(parameter):
        undoubt.sync.connect(**given)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def threads() -> Iterator[SyncStage]:
    made = SyncStage()
    yield made
    made.coordinator.close()


def touches(tx: Any) -> None:
    tx.branch("alpha")


@pytest.mark.parametrize(
    ("call", "parameter", "value"),
    matrix(
        undoubt.sync.Coordinator.transaction,
        undoubt.sync.Coordinator.run,
        undoubt.sync.Coordinator.outcome,
        undoubt.sync.Coordinator.add_participant,
        undoubt.sync.Coordinator.remove_participant,
    ),
)
def test_calls_of_the_synchronous_coordinator(
    threads: SyncStage, call: Callable[..., Any], parameter: str, value: object
) -> None:
    positional, named = arguments(call, parameter, value, work=touches)
    with refused(parameter):
        call(threads.coordinator, *positional, **named)
    assert threads.xact_statuses() == set()


@pytest.mark.parametrize(("call", "parameter", "value"), matrix(undoubt.sync.Transaction.publish))
def test_what_a_synchronous_transaction_publishes(
    threads: SyncStage, call: Callable[..., Any], parameter: str, value: object
) -> None:
    with threads.coordinator.transaction() as tx:
        with refused(parameter):
            call(tx, **({"name": "alpha", "payload": b"x"} | {parameter: value}))
        assert tx.participants == ()


@pytest.mark.parametrize(
    ("call", "parameter", "value"), matrix(undoubt.sync.Transaction.branch, undoubt.sync.Transaction.branches)
)
def test_calls_of_a_synchronous_transaction(
    threads: SyncStage, call: Callable[..., Any], parameter: str, value: object
) -> None:
    with threads.coordinator.transaction() as tx, refused("name"):
        call(tx, value)


@pytest.mark.parametrize("value", BAD["opening"], ids=repr)
def test_a_synchronous_coordinator_of_what_opens_nothing(value: Any) -> None:
    with refused("opening"):
        undoubt.sync.Coordinator(value)


@pytest.mark.parametrize("session", [Session, AsyncSession])
@pytest.mark.parametrize(("call", "parameter", "value"), matrix(Session.__init__))
def test_sessions_of_sqlalchemy(
    threads: SyncStage, session: type[Any], call: object, parameter: str, value: Any
) -> None:
    engine = sa.create_engine("postgresql+psycopg://")
    given = {"coordinator": threads.coordinator, "participants": {engine: "alpha"}}
    with refused(parameter):
        session(**(given | {parameter: value}))


@pytest.mark.parametrize(("call", "parameter", "value"), matrix(Session.undoubt_publish))
def test_what_a_session_publishes(
    threads: SyncStage, call: Callable[..., Any], parameter: str, value: object
) -> None:
    """Broken if the session begins a transaction for it."""
    participants = {sa.create_engine("postgresql+psycopg://"): "alpha"}
    with Session(coordinator=threads.coordinator, participants=participants) as session:
        with refused(parameter):
            call(session, **({"name": "alpha", "payload": b"x"} | {parameter: value}))
        assert not session.in_transaction()
