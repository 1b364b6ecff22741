"""Calls of etcd's JSON gateway: at one member after another until one answers.

A call whose answer was lost is repeated, and may then be carried out twice, or once long after the
repetition. So every call that changes something is one of these: a transaction that compares first and
changes nothing the second time, a lease that is granted and not used, or an end that may be repeated."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import ssl
from random import SystemRandom
from typing import Any, TypeVar

import httpx
import msgspec

from undoubt.coordinator.errors import LedgerError, LedgerUnavailable, LedgerUnusable, WrongProcess
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.address import read, tls_context
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.backoff import pauses_around
from undoubt.participants.redact import redact
from undoubt.participants.tasks import uncancellable

A = TypeVar("A", bound=messages.EtcdAnswer | messages.Renewed)

RETRY_S = (0.01, 0.3)
"""The shortest and the longest pause before a call is repeated."""
ATTEMPTS = 3
"""A member that does not answer has this part (one third) of the call's time."""
CONNECTIONS_MAX = 32

_UNKNOWN, _INVALID, _NOT_FOUND, _EXISTS, _DENIED, _EXHAUSTED, _PRECONDITION = 2, 3, 5, 6, 7, 8, 9
_OUT_OF_RANGE, _UNIMPLEMENTED, _UNAUTHENTICATED = 11, 12, 16
_REFUSED = frozenset(
    {
        _INVALID,
        _NOT_FOUND,
        _EXISTS,
        _DENIED,
        _EXHAUSTED,
        _PRECONDITION,
        _OUT_OF_RANGE,
        _UNIMPLEMENTED,
        _UNAUTHENTICATED,
    }
)
"""gRPC's codes with which etcd says that it has carried out nothing. Every other one, like INTERNAL, may also
come from the gateway, which has lost the answer of its member."""
_STALE_TOKEN = ("invalid auth token", "revision of auth store is old", "auth store is old")
_random = SystemRandom()

log = logging.getLogger(__name__)


class EtcdRefused(LedgerError):
    """etcd refused a request, and has carried out nothing of it. ``code`` is gRPC's."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.words = words

    @property
    def no_lease(self) -> bool:
        """The lease of the request has ended, or never was."""
        return self.code == _NOT_FOUND and "lease" in self.words

    @property
    def too_large(self) -> bool:
        """The request is above ``--max-request-bytes``: of the member, or of its port for gRPC."""
        return any(words in self.words for words in ("request is too large", "message larger than max"))


class Unanswered(Exception):  # noqa: N818 - caught in this module
    """No answer: the request may or may not have been carried out."""


class EtcdClient:
    """Belongs to one event loop and one process. Made without a connection."""

    def __init__(self, settings: LedgerSettings) -> None:
        """Raises ``LedgerMisconfigured`` if the URL or a TLS file cannot be used."""
        self.url = redact(settings.url)
        self.address = read(settings.url)
        context = tls_context(settings)
        scheme = "http" if context is None else "https"
        self._bases = [f"{scheme}://{endpoint}" for endpoint in self.address.endpoints]
        self._current = 0
        self.timeout_s = settings.request_timeout_s
        # Without the environment: a proxy that is meant for the web would be asked for the ledger.
        self._http = httpx.AsyncClient(
            verify=context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # the latter trusts nobody
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
        )
        self.token = ""
        self._running: set[asyncio.Task[Any]] = set()
        self._pid = os.getpid()
        self._closed = False

    async def close(self) -> None:
        """Wait for the calls that run, at most as long as a request may take, then close all connections."""
        self._closed = True
        if os.getpid() != self._pid:
            return
        while self._running:
            await asyncio.wait(self._running)
        await self._http.aclose()

    @property
    def foreign(self) -> bool:
        """Whether this process is a fork of the one that opened the ledger."""
        return os.getpid() != self._pid

    async def transact(self, transaction: messages.EtcdTransaction) -> messages.TransactionAnswer:
        """Carry out a transaction, which may be repeated: it compares what a repetition would find changed.
        Raises as :meth:`call`."""
        return await self.call("kv/txn", transaction, messages.TransactionAnswer)

    async def range(self, asked: messages.Range) -> messages.RangeAnswer:
        return await self.call("kv/range", asked, messages.RangeAnswer)

    async def grant(self, ttl_s: int) -> messages.Granted:
        """A new lease. If its answer is lost, another one is granted, and the first one expires unused."""
        return await self.call("lease/grant", messages.Grant(ttl_s), messages.Granted)

    async def renew(self, lease: int) -> messages.Renewal:
        """Renew a lease. Its ``TTL`` is 0 if the member that answers for leases does not have it (which may
        be because it has not heard of it yet)."""
        return (await self.call("lease/keepalive", messages.LeaseId(lease), messages.Renewed)).result

    async def revoke(self, lease: int) -> None:
        """End a lease, and delete its keys. A lease that has ended is no error."""
        try:
            await self.call("lease/revoke", messages.LeaseId(lease), messages.EtcdAnswer)
        except EtcdRefused as error:
            if not error.no_lease:
                raise

    async def revoke_later(self, lease: int) -> None:
        """As :meth:`revoke`; if etcd does not answer, the lease ends by itself."""
        try:
            await self.revoke(lease)
        except LedgerError as error:
            log.info("lease %x of ledger %s could not be revoked: %s", lease, self.url, error)

    async def status(self, base: str) -> messages.MemberStatus:
        """The status of the member at ``base``, one of :attr:`bases`. Raises ``LedgerError``."""
        try:
            return await self.attempt(
                base, "maintenance/status", messages.Nothing(), messages.MemberStatus, self.timeout_s
            )
        except Unanswered as error:
            raise LedgerUnavailable(f"member {base} of ledger {self.url} does not answer: {error}") from None

    @property
    def bases(self) -> tuple[str, ...]:
        return tuple(self._bases)

    async def call(self, path: str, request: msgspec.Struct, kind: type[A]) -> A:
        """The answer to ``request``. The cancellation of the caller does not stop the call. Raises
        ``LedgerUnavailable`` (it may or may not have been carried out), ``LedgerUnusable``, or
        :class:`EtcdRefused`."""
        if os.getpid() != self._pid:
            raise WrongProcess(
                f"this ledger was opened by process {self._pid}; after a fork, open the ledger again"
            )
        if self._closed:
            raise LedgerUnavailable("the ledger is closed")
        task = uncancellable(self._repeated(path, request, kind), name="undoubt-ledger-etcd")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the waiting caller may have been cancelled

    async def _repeated(self, path: str, request: msgspec.Struct, kind: type[A]) -> A:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.timeout_s
        why = ""
        for pause_s in pauses_around(*RETRY_S, _random):
            for _ in self._bases:
                left_s = end - loop.time()
                if left_s <= 0:
                    break
                try:
                    return await self._authenticated(
                        path, request, kind, min(left_s, self.timeout_s / ATTEMPTS)
                    )
                except Unanswered as lost:
                    why = str(lost)
                    self._current = (self._current + 1) % len(self._bases)
            if loop.time() + pause_s >= end:
                break
            await asyncio.sleep(pause_s)
        raise LedgerUnavailable(f"no answer from ledger {self.url} within {self.timeout_s} s: {why}")

    async def _authenticated(self, path: str, request: msgspec.Struct, kind: type[A], timeout_s: float) -> A:
        base = self._bases[self._current]
        if self.address.user and not self.token:
            await self._authenticate(base, timeout_s)
        try:
            return await self.attempt(base, path, request, kind, timeout_s)
        except EtcdRefused as refused:
            if refused.code != _UNAUTHENTICATED and not any(words in refused.words for words in _STALE_TOKEN):
                raise _as_told(refused, self.url) from None
            if not self.address.user:
                raise _as_told(refused, self.url) from None
        self.token = ""
        raise Unanswered("the token has expired")

    async def _authenticate(self, base: str, timeout_s: float) -> None:
        given = messages.Credentials(self.address.user, self.address.password)
        try:
            answer = await self.attempt(base, "auth/authenticate", given, messages.Authenticated, timeout_s)
        except EtcdRefused as refused:
            raise LedgerUnusable(
                f"ledger {self.url} cannot be used: user {self.address.user!r} is refused ({refused})"
            ) from None
        self.token = answer.token

    async def attempt(
        self, base: str, path: str, request: msgspec.Struct, kind: type[A], timeout_s: float
    ) -> A:
        headers = {"Authorization": self.token} if self.token else {}
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._http.post(
                    f"{base}/v3/{path}", content=messages.encode(request), headers=headers, timeout=None
                )
        except TimeoutError:
            raise Unanswered(f"{base} does not answer within {timeout_s:.1f} s") from None
        except (httpx.HTTPError, OSError) as error:  # the latter: an alert of TLS 1.3 after the handshake
            raise Unanswered(f"{base}: {str(error) or type(error).__name__}") from None
        if answer.status_code == httpx.codes.OK:
            with contextlib.suppress(msgspec.MsgspecError):
                received = messages.decode(answer.content, kind)
                if received.header.cluster_id:
                    return received
        refusal = _refusal(answer.content)
        if refusal is None:
            raise Unanswered(f"{base} answers with status {answer.status_code}, not as etcd would")
        words = refusal.error or refusal.message
        if refusal.code not in _REFUSED or "leader" in words or "too many requests" in words:
            raise Unanswered(f"{base}: {words or f'status {answer.status_code}'}")
        raise EtcdRefused(refusal.code, words)


def _refusal(content: bytes) -> messages.EtcdRefusal | None:
    try:
        found = json.loads(content)
        inner = found.get("error")
        if isinstance(inner, dict):  # of a stream
            return messages.EtcdRefusal(
                str(inner.get("message", "")), "", int(inner.get("grpc_code") or _UNKNOWN)
            )
        return messages.decode(content, messages.EtcdRefusal)
    except (ValueError, AttributeError, TypeError, msgspec.MsgspecError):
        return None


def _as_told(refused: EtcdRefused, url: str) -> LedgerError:
    """The contract's error for ``refused``, if it has another meaning than that the request was wrong."""
    if refused.code == _EXHAUSTED and not refused.too_large:
        return LedgerUnavailable(f"no room at ledger {url}: {refused}")
    if refused.code in {_DENIED, _UNAUTHENTICATED} or "user name is empty" in refused.words:
        return LedgerUnusable(
            f"ledger {url} cannot be used: {refused}. Its user needs a role with readwrite on the prefix"
        )
    if refused.code == _UNIMPLEMENTED:
        return LedgerUnusable(f"ledger {url} cannot be used: {refused}; it needs etcd 3.4 or newer")
    return refused
