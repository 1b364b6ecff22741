"""Transactions of a sidecar from Python, over httpx; and the header of the current one on requests to other
services.

Example::

    sidecar = httpx.AsyncClient(base_url="http://127.0.0.1:7480", headers={"Authorization": "Bearer …"})
    propagation = Propagation(["payments.internal"])
    services = httpx.AsyncClient(event_hooks={"request": [propagation.asynchronous]})

    async with transaction(sidecar) as tx:
        await tx.execute("orders", "insert into orders (item) values ($1)", ["a lamp"])
        answer = await services.post("https://payments.internal/pay")     # joins the transaction
        answer.raise_for_status()
    # here it is committed in both, or an error was raised
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import httpx

from undoubt.integrations.joining import HEADER, JoinedTransaction, current, working_in
from undoubt.participants.bounds import OutOfBounds, count, text
from undoubt.participants.errors import UndoubtError, UsageError

_TELL_NOTHING = frozenset({202, 404})
"""Answers to a commit; 404: the ledger does not remember the transaction."""
_BEGUN = "TransactionEnded"
"""The problem of a transaction whose commit has begun, or that has ended: it says nothing of the outcome."""


SQL_BYTES_MAX = 2**30
"""PostgreSQL takes no longer statement; the sidecar's own bound (``sidecar.body_bytes_max``) is lower."""


class SidecarRefused(UndoubtError):
    """The sidecar answered with a problem. ``name`` is that of the problem, ``problem`` the whole of it. The
    transaction is not committed, unless ``outcome`` says so."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.name = str(problem.get("name", ""))
        self.outcome = str(problem.get("outcome", ""))
        super().__init__(f"{self.name or status}: {problem.get('detail', '')}")


class SidecarOutcomeUnknown(UndoubtError):
    """The commit got no answer, or one that does not know the outcome. Ask again for ``transaction``; never
    take it for aborted."""

    def __init__(self, transaction: str) -> None:
        super().__init__(f"the outcome of {transaction} is not known yet: ask the sidecar again")
        self.transaction = transaction


class Propagation:
    """Puts the header of the current transaction on requests to ``hosts``, and to no others: the header is a
    secret. Its methods are event hooks of httpx."""

    def __init__(self, hosts: Iterable[str]) -> None:
        """Raises ``UsageError`` if ``hosts`` is a text, which is a mistake, or empty."""
        if isinstance(hosts, str | bytes) or not isinstance(hosts, Iterable):
            raise UsageError("hosts must be a list of names, not a text")
        self._hosts = frozenset(text("a name in hosts", host).lower() for host in hosts)
        if not self._hosts:
            raise UsageError("hosts must name at least one service")

    def synchronous(self, request: httpx.Request) -> None:
        """For ``httpx.Client``."""
        joined = current()
        if joined is not None and request.url.host.lower() in self._hosts:
            request.headers[HEADER] = joined.header
        else:
            request.headers.pop(HEADER, None)  # a redirect to another host has copied it

    async def asynchronous(self, request: httpx.Request) -> None:
        """For ``httpx.AsyncClient``."""
        self.synchronous(request)


class SidecarBranches:
    """What can be done in a transaction: add branches. ``sidecar`` is a client of one's own sidecar."""

    def __init__(self, sidecar: httpx.AsyncClient, joined: JoinedTransaction, *, owned: bool) -> None:
        self._sidecar = sidecar
        self._joined = joined
        self._headers = {} if owned else {HEADER: joined.header}

    @property
    def id(self) -> str:
        """The transaction's id."""
        return self._joined.id

    async def announce(self, participant: str) -> dict[str, Any]:
        """A branch that the caller runs: ``begin``, ``prepare``, ``begin_statements``,
        ``prepare_statements``. Raises ``SidecarRefused``, ``httpx.HTTPError``."""
        text("participant", participant, empty=False)
        return await self._post("branches", {"participant": participant})

    async def execute(self, participant: str, sql: str, params: Sequence[Any] = ()) -> dict[str, Any]:
        """A statement in the branch that the sidecar runs there: ``columns``, ``rows``, ``tag``. Raises as
        :meth:`announce`."""
        text("participant", participant, empty=False)
        text("sql", sql, most=SQL_BYTES_MAX, empty=False)
        if isinstance(params, str | bytes) or not isinstance(params, Sequence):
            raise OutOfBounds("params", f"must be a list of values, not of type {type(params).__name__}")
        return await self._post(
            "statements", {"participant": participant, "sql": sql, "params": list(params)}
        )

    async def _post(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        path = f"/v1/transactions/{self.id}/{verb}"
        return checked(await self._sidecar.post(path, json=body, headers=self._headers))


def joined(sidecar: httpx.AsyncClient) -> SidecarBranches:
    """The transaction that the current request came with. Raises ``UsageError`` if it came with none."""
    _check_client(sidecar)
    found = current()
    if found is None:
        raise UsageError(f"this request came without {HEADER}: there is no transaction to join")
    return SidecarBranches(sidecar, found, owned=False)


@contextlib.asynccontextmanager
async def transaction(
    sidecar: httpx.AsyncClient, *, timeout_ms: int | None = None
) -> AsyncIterator[SidecarBranches]:
    """A new transaction: committed at the end of the block, rolled back if that raises. Within,
    :class:`Propagation` sends its header. Raises ``SidecarRefused``, also for a transaction that was aborted,
    ``SidecarOutcomeUnknown``, ``httpx.HTTPError``."""
    _check_client(sidecar)
    if timeout_ms is not None:
        count("timeout_ms", timeout_ms, least=1)
    begun = checked(await sidecar.post("/v1/transactions", json={"timeout_ms": timeout_ms}))
    began = JoinedTransaction(begun["id"], begun.get("join", ""))
    path = f"/v1/transactions/{began.id}"
    try:
        with working_in(began if began.header else None):
            yield SidecarBranches(sidecar, began, owned=True)
    except BaseException:
        with contextlib.suppress(httpx.HTTPError):  # its deadline ends it then
            await sidecar.post(f"{path}/rollback")
        raise
    try:
        answer = await sidecar.post(f"{path}/commit")
    except httpx.HTTPError as error:
        raise SidecarOutcomeUnknown(began.id) from error
    if answer.status_code in _TELL_NOTHING or answer.status_code >= 500:
        raise SidecarOutcomeUnknown(began.id)
    try:
        checked(answer)
    except SidecarRefused as refused:
        # A refusal without a name is that of a proxy, which may have sent the commit on.
        if refused.outcome == "unknown" or (not refused.outcome and refused.name in {"", _BEGUN}):
            raise SidecarOutcomeUnknown(began.id) from refused
        raise


def _check_client(sidecar: object) -> None:
    if not isinstance(sidecar, httpx.AsyncClient):
        raise OutOfBounds("sidecar", f"must be an httpx.AsyncClient, not of type {type(sidecar).__name__}")


def checked(answer: httpx.Response) -> dict[str, Any]:
    """The body of an answer. Raises ``SidecarRefused``."""
    try:
        body = answer.json()
    except ValueError:
        body = {}
    decoded = body if isinstance(body, dict) else {}
    if answer.is_success:
        return decoded
    raise SidecarRefused(answer.status_code, decoded)
