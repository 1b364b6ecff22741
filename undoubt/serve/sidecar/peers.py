"""Forwards requests about a transaction that another sidecar has begun to that sidecar, the owner.

Duties, in order:

1. Check that the capability, if there is one, is for this ledger and for the transaction of the path.
2. Check that the client of this sidecar is allowed to make the request.
3. Read the address of the owner from its session in the ledger, which must be marked
   (:mod:`undoubt.coordinator.ledger.session_mark`) and open. A header must contain the same address.
4. Call the owner.

An agent (:mod:`.agent_branch`) is called in the same way, at the address in its own session. No other address
is ever called, so that a header cannot make this sidecar connect to an arbitrary server.

A request with a capability is sent to the owner with this sidecar's token, never with that of its client. A
request without a capability is sent with the client's token, never with that of this sidecar: a sidecar gives
its clients no rights that they do not have at the owner.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import ssl
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import TxId
from undoubt.serve.sidecar.capability import HEADER, SealedCapability
from undoubt.serve.sidecar.idempotency import Answer
from undoubt.serve.sidecar.lookup import address_of
from undoubt.serve.sidecar.problems import RequestRefused, busy
from undoubt.serve.sidecar.settings import SidecarSettings

log = logging.getLogger(__name__)

FORWARDED = "undoubt-forwarded"
"""A header of requests from another sidecar, which are not forwarded again."""
CONNECT_S = 2.0
ANSWER_S = 30.0
"""The longest wait for an answer of the owner; a statement may wait for a lock."""
LOOK_S = 1.0
"""The pause between two looks at the owner's session while its answer is awaited."""
_KEPT = ("content-type", "location", "retry-after", "preference-applied")
_OVERHEAD_BYTES = 1024 * 1024
"""The maximum size of an answer without the values in it."""


class OwnerUnreachable(Exception):
    """The owner did not answer, or not before its session ended; whether it carried out the request is
    unknown."""


class OwnerRefuses(RequestRefused):
    """The owner has accepted neither the token nor the certificate of the request."""


def is_loopback(host: str) -> bool:
    """Whether a connection to ``host`` stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class OtherSidecars:
    """Sends requests of this process to other sidecars."""

    def __init__(self, settings: SidecarSettings) -> None:
        """Raises ``UsageError`` if the token or the certificates cannot be read."""
        self._settings = settings
        self._headers: dict[str, str] = {}
        try:
            if settings.token_file:
                token = Path(settings.token_file).read_text().strip()
                self._headers["authorization"] = f"Bearer {token}"
        except OSError as error:
            raise UsageError(f"sidecar.token_file cannot be read: {error.strerror or error}") from error
        self._client = httpx.AsyncClient(
            verify=_trust(settings),
            trust_env=False,  # no proxy sees a capability
            follow_redirects=False,
            timeout=httpx.Timeout(ANSWER_S + settings.wait_max_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=settings.requests_max),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def owner_of(self, ledger: Ledger, txid: TxId, claimed: str | None = None) -> str:
        """The address of the sidecar that began ``txid``; empty if its session has ended. Raises
        :class:`RequestRefused` if the header claims another, and ``LedgerError``."""
        address = await address_of(ledger, txid)
        if address and claimed is not None and address != claimed:
            raise RequestRefused(
                403, "WrongOwner", "the ledger contains another owner of the transaction than the header"
            )
        parts = urlsplit(address)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise RequestRefused(
                403, "WrongOwner", "the owner's address needs TLS: it is not on this machine"
            )
        return address

    async def while_open(self, ledger: Ledger, txid: TxId, asking: Coroutine[Any, Any, Answer]) -> Answer:
        """The result of ``asking`` the owner of ``txid``, unless the owner's session ends before: an owner
        that stands still does not answer, and from then on the ledger has the outcome. Raises
        :class:`OwnerUnreachable`, and the errors of ``asking``."""
        asked = asyncio.create_task(asking)
        try:
            while not (await asyncio.wait([asked], timeout=LOOK_S))[0]:
                if await self._has_ended(ledger, txid):
                    raise OwnerUnreachable("its session has ended")
            return asked.result()
        finally:
            asked.cancel()

    async def _has_ended(self, ledger: Ledger, txid: TxId) -> bool:
        """Whether the session of ``txid`` is known to have ended."""
        try:
            return not await self.owner_of(ledger, txid)
        except (LedgerError, RequestRefused):
            return False

    async def join(
        self, method: str, url: str, shown: SealedCapability, body: bytes, headers: dict[str, str]
    ) -> Answer:
        """Send a request with a capability to the owner. Raises the same errors as :meth:`ask`."""
        sent = headers | self._headers | {HEADER: shown.text}
        return await self.ask(method, url, body, sent, shown.capability.transaction)

    async def order(self, url: str, body: bytes, transaction: str) -> Answer:
        """What an agent answers. Raises as :meth:`ask`."""
        headers = self._headers | {"content-type": "application/json"}
        return await self.ask("POST", url, body, headers, transaction)

    async def ask(
        self, method: str, url: str, body: bytes, headers: dict[str, str], transaction: str
    ) -> Answer:
        """Send a request to the owner, and return its answer. Raises :class:`OwnerUnreachable`,
        :class:`OwnerRefuses`, :class:`RequestRefused`."""
        sent = headers | {FORWARDED: "1"}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]  # as they came
        try:
            async with self._client.stream(method, url, content=body, headers=raw) as response:
                content = await self._read(response)
        except httpx.HTTPError as error:
            log.info("the owner of %s does not answer: %s", transaction, type(error).__name__)
            raise OwnerUnreachable(type(error).__name__) from error
        if response.status_code in {401, 421}:
            log.warning("the owner of %s refuses this sidecar, or its client", transaction)
            raise OwnerRefuses(
                502, "OwnerRefuses", "the sidecar that began the transaction does not accept this sidecar"
            )
        kept = {name: response.headers[name] for name in _KEPT if name in response.headers}
        return Answer(response.status_code, content, kept)

    async def _read(self, response: httpx.Response) -> bytes:
        most = self._settings.rows_bytes_max * 8 + _OVERHEAD_BYTES
        parts: list[bytes] = []
        size = 0
        async for part in response.aiter_bytes():
            size += len(part)
            if size > most:
                raise RequestRefused(502, "OwnerAnswersTooMuch", f"its answer has more than {most} bytes")
            parts.append(part)
        return b"".join(parts)


def unreachable() -> RequestRefused:
    """The answer to a request that changes something, if the owner did not answer."""
    return busy(
        "OwnerUnavailable",
        "the sidecar that began the transaction does not answer; the request may have been carried out",
        status=503,
    )


def key_at_owner(client: str, key: str) -> str:
    """The idempotency key that is sent to the owner for ``key`` of a client of this sidecar."""
    return hashlib.sha256(f"{client}\0{key}".encode()).hexdigest()


def _trust(settings: SidecarSettings) -> ssl.SSLContext:
    """Raises ``UsageError``."""
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca or None)
        if settings.tls_cert:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"sidecar.tls_cert, tls_key or tls_ca cannot be used: {error}") from error
    return context
