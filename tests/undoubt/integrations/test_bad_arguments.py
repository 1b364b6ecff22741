"""Every parameter of every public call of the integrations with values that it cannot have: ``UsageError``,
which names it, when the application is put together and not at its first request or job. Generated from the
signatures, so that a new parameter is judged too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import flask
import httpx
import pytest
from celery import Celery
from quart import Quart

import undoubt.integrations.celery
import undoubt.integrations.rq
import undoubt.integrations.zope
from tests.undoubt.sync.support import Stage
from tests.undoubt.test_bad_arguments import BAD, NOTHING, refused
from undoubt.errors import UsageError
from undoubt.integrations.asgi import CommitBeforeResponse
from undoubt.integrations.celery import TransactionTask
from undoubt.integrations.django import atomic
from undoubt.integrations.flask import Undoubt
from undoubt.integrations.httpx import Propagation, SidecarBranches, joined, transaction
from undoubt.integrations.joining import JoinedTransaction
from undoubt.integrations.per_process import PerProcess
from undoubt.integrations.pytest.crash import crash_at
from undoubt.integrations.quart import commit_before_response
from undoubt.integrations.starlette import JoinTransaction


async def awaited(*_: object) -> None: ...


def generated(*_: object) -> Iterator[None]:
    yield


LAZY = (5, "x", NOTHING, awaited, generated)
COORDINATORS: tuple[Any, ...] = (5, "x", NOTHING, False, [])
TEXTS = (None, 5, b"a", ["a"], "", "a\0", NOTHING)
WRONG: dict[str, tuple[Any, ...]] = BAD | {
    "agent": ("", 5, b"a", ["a"], "a\0", False, NOTHING),  # a coordinator says whether there is one
    "app": (5, "x", NOTHING),
    "coordinator": COORDINATORS,
    "threads": (None, 0, 1, "no", []),
    "sessions": LAZY,
    "commits": (None, *LAZY),
    "answer": (None, *LAZY),
    "manager": (5, "x", NOTHING),
    "using": (None, 5, "orders", b"orders", [], [5], [None], [""], ["a\0"], print),
    "hosts": (None, 5, "a", b"a", [], [5], ["a\0"]),
    "sidecar": (None, 5, "http://127.0.0.1:7480", NOTHING, httpx.AsyncClient),
    "timeout_ms": (0, -1, 1.5, "5", True, float("nan"), 2**40, []),
    "participant": TEXTS,
    "sql": TEXTS,
    "params": (None, 5, "x", b"x", {}, NOTHING),
    "header": (None, 5, b"a.b", "", "a\0.b", NOTHING),
    "function": (None, 5, "x", NOTHING),
    "nth": (0, -1, 1.5, "1", None, True),
    "step": (None, 5, "", "no", [], NOTHING),
    "undoubt_timeout": BAD["timeout"],
    "undoubt_retries": BAD["retries"],
}
OF_OTHERS = {"self", "arguments", "options"}
REQUIRED = {"app"}


def named(value: object) -> str:
    return f"{getattr(value, '__name__', None) or repr(value):.24}"


def cases(call: Callable[..., Any], *, without: tuple[str, ...] = ()) -> list[Any]:
    return [
        pytest.param(parameter, value, id=f"{parameter}-{named(value)}")
        for parameter, found in inspect.signature(call).parameters.items()
        if parameter not in OF_OTHERS and parameter not in without
        for value in WRONG[parameter]
        if value is not None or found.default is not None
    ]


@pytest.fixture(scope="module")
def threads() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.coordinator.close()


@pytest.mark.parametrize(("parameter", "value"), cases(Undoubt.__init__))
def test_flask(parameter: str, value: Any) -> None:
    """Broken if an application starts, and each of its requests is answered 500."""
    with refused(parameter):
        Undoubt(**({"app": flask.Flask(__name__)} | {parameter: value}))


@pytest.mark.parametrize(("parameter", "value"), cases(CommitBeforeResponse.__init__))
def test_asgi(parameter: str, value: Any) -> None:
    """Broken if ``commits`` that is a coroutine function commits every response: a coroutine is true."""
    with refused(parameter):
        CommitBeforeResponse(**({"app": awaited} | {parameter: value}))


@pytest.mark.parametrize(("parameter", "value"), cases(commit_before_response))
def test_quart(parameter: str, value: Any) -> None:
    app = Quart(__name__)
    before = app.asgi_app
    with refused(parameter):
        commit_before_response(**({"app": app} | {parameter: value}))
    assert app.asgi_app == before


@pytest.mark.parametrize(("parameter", "value"), cases(JoinTransaction.__init__))
def test_joining_applications(parameter: str, value: Any) -> None:
    with refused(parameter):
        JoinTransaction(**{parameter: value})


@pytest.mark.parametrize(("parameter", "value"), cases(atomic.__init__))
def test_django(parameter: str, value: Any) -> None:
    with refused(parameter):
        atomic(**({"using": ["orders"]} | {parameter: value}))


@pytest.mark.parametrize(("parameter", "value"), cases(undoubt.integrations.zope.join))
def test_zope(threads: Stage, parameter: str, value: Any) -> None:
    with refused(parameter):
        undoubt.integrations.zope.join(**({"coordinator": threads.coordinator} | {parameter: value}))
    assert threads.xact_statuses() == set()


@pytest.mark.parametrize(
    ("call", "needed"), [(Undoubt, {}), (CommitBeforeResponse, {"app": awaited}), (atomic, {"using": ["a"]})]
)
def test_an_agent_of_another_protocol(call: Any, needed: dict[str, Any]) -> None:
    with refused("agent"):
        call(**needed, protocol="2pc", agent="a")


@pytest.mark.parametrize(("parameter", "value"), cases(undoubt.integrations.rq.transactional))
def test_rq(parameter: str, value: Any) -> None:
    """Broken if a worker imports the job, and each job fails."""
    with refused(parameter):
        undoubt.integrations.rq.transactional(**{parameter: value})


@pytest.mark.parametrize(("parameter", "value"), cases(undoubt.integrations.celery.coordinator))
def test_celery(parameter: str, value: Any) -> None:
    with refused(parameter):
        undoubt.integrations.celery.coordinator(value)


@pytest.mark.parametrize("value", WRONG["source"], ids=repr)
def test_the_settings_of_celery(value: Any) -> None:
    with Celery("shop", broker="memory://") as app:
        app.conf.undoubt = value
        with refused("source"):
            undoubt.integrations.celery.coordinator(app)


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option in ("undoubt_timeout", "undoubt_retries") for value in WRONG[option]],
    ids=lambda value: f"{value!r:.24}",
)
def test_tasks_of_celery(option: str, value: Any) -> None:
    with refused(option):
        type("Task", (TransactionTask,), {option: value})


@pytest.mark.parametrize(("parameter", "value"), cases(PerProcess.__init__))
def test_a_coordinator_for_each_process(parameter: str, value: Any) -> None:
    with refused(parameter):
        PerProcess(**{parameter: value})


@pytest.mark.parametrize(("parameter", "value"), cases(Propagation.__init__))
def test_hosts_that_get_the_header(parameter: str, value: Any) -> None:
    with refused(parameter):
        Propagation(value)


@pytest.mark.parametrize(("parameter", "value"), cases(transaction))
async def test_transactions_of_a_sidecar(parameter: str, value: Any) -> None:
    """Broken if a request is sent with it."""
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: pytest.fail("asked"))) as client:
        with refused(parameter):
            async with transaction(**({"sidecar": client} | {parameter: value})):
                pytest.fail("it has begun")


@pytest.mark.parametrize(("parameter", "value"), cases(joined))
def test_joining_by_a_sidecar(parameter: str, value: Any) -> None:
    with refused(parameter):
        joined(value)


@pytest.mark.parametrize("call", [SidecarBranches.announce, SidecarBranches.execute])
@pytest.mark.parametrize(
    ("parameter", "value"),
    [(name, value) for name in ("participant", "sql", "params") for value in WRONG[name]],
)
async def test_branches_of_a_sidecar(call: Callable[..., Any], parameter: str, value: Any) -> None:
    if parameter not in inspect.signature(call).parameters:
        return
    good = {"participant": "orders", "sql": "select 1", "params": []}
    given = {name: value for name, value in good.items() if name in inspect.signature(call).parameters}
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: pytest.fail("asked"))) as client:
        branches = SidecarBranches(client, JoinedTransaction("1-0123456789abcdef.7", "x"), owned=True)
        with refused(parameter):
            await call(branches, **(given | {parameter: value}))


@pytest.mark.parametrize(("parameter", "value"), cases(JoinedTransaction.parse))
def test_headers(parameter: str, value: Any) -> None:
    with refused(parameter):
        JoinedTransaction.parse(value)


@pytest.mark.parametrize(("parameter", "value"), cases(crash_at))
def test_crashes(parameter: str, value: Any) -> None:
    """Broken if a process is forked for it."""
    with pytest.raises(UsageError, match=parameter):
        given: dict[str, Any] = {"step": "before_decide", "function": print, parameter: value}
        crash_at(**given)


@pytest.mark.parametrize("value", [5, [], NOTHING], ids=repr)
def test_the_settings_of_django(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    class Settings:
        UNDOUBT = value

    monkeypatch.setattr("undoubt.integrations.django.settings", Settings)
    with pytest.raises(UsageError, match="UNDOUBT"):
        undoubt.integrations.django.coordinator()
