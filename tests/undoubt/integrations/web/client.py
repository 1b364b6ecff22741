"""Requests by the test clients of the frameworks, in one form."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import psycopg

import undoubt
import undoubt.sync
from tests.undoubt.integrations.web.shop import NOBODY, Shop, statements


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def outcome(self) -> str | None:
        """What the header says."""
        return self.headers.get("Undoubt-Outcome")

    @property
    def told(self) -> Any:
        return json.loads(self.body)


def headers(found: Any) -> Mapping[str, str]:
    """Those of werkzeug, as a mapping that ignores case."""
    return httpx.Headers(list(found.items()))


Client = Callable[[str], Reply]
"""Posts to a path."""

Application = Callable[[Shop], AbstractContextManager[Client]]
"""Runs the application of a framework over ``shop``."""


class Failed(Exception):
    """A mistake of the application, after it has written."""


class Handled(Exception):
    """The same; an exception handler of the application answers it with 200."""


def raise_as_told(what: str) -> None:
    if what in {"raises", "commits"}:
        raise Failed
    if what.endswith("handled"):
        raise Handled


def account_of(what: str) -> int:
    return NOBODY if what.endswith("late") else 1


async def act(tx: undoubt.Transaction, what: str, number: int) -> None:
    """The work of the handler of ``/{what}/{number}``."""
    for name, statement in statements(number, account_of(what)).items():
        await (await tx.branch(name)).execute(statement)
    if what == "swallows":
        with contextlib.suppress(asyncpg.PostgresError):
            await (await tx.branch("payments")).execute("select 1/0")
    if what == "rolls-back":
        await tx.rollback()
    if what.startswith("commits"):
        await tx.commit()
    raise_as_told(what)


def act_in_thread(tx: undoubt.sync.Transaction, what: str, number: int) -> None:
    """The same for threads."""
    for name, statement in statements(number, account_of(what)).items():
        tx.branch(name).execute(statement.encode())
    if what == "swallows":
        with contextlib.suppress(psycopg.Error):
            tx.branch("payments").execute("select 1/0")
    if what == "rolls-back":
        tx.rollback()
    if what.startswith("commits"):
        tx.commit()
    raise_as_told(what)


BEHAVIOURS = {
    "order": "writes in both databases",
    "late": "writes what PREPARE refuses",
    "raises": "writes, and raises Failed",
    "refuses": "writes, and answers 422",
    "swallows": "writes, and swallows an error of SQL",
    "stream": "writes, and streams its body; the body tries to write again, and says whether it could",
    "background": "writes, and appends the number to shop.after once the response is sent",
    "background-late": "the same, with what PREPARE refuses",
    "commits": "writes, commits by itself, and raises Failed",
    "commits-422": "writes, commits by itself, and answers 422",
    "handled": "writes, and raises Handled",
    "redirects": "writes, and raises the framework's exception that is answered with a redirection",
    "commits-handled": "writes, commits by itself, and raises Handled",
    "unserializable": "writes, and returns what cannot become a response",
}
"""What is behind ``/{what}/{number}``. ``/idle`` does nothing."""
