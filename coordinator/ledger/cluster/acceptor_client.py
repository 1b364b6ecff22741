"""Sends requests to acceptors, over one connection to each, which is opened by the first request.

Requests are not repeated here: a request without an answer is reported as an error, and the caller decides
what to send next. The connection to a node that sends nothing is closed; the next request opens another. All
requests within one turn of the loop are sent in one frame."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.cluster import messages
from undoubt.coordinator.ledger.cluster.messages import AcceptorCall
from undoubt.coordinator.ledger.commands import PAXOS_VERSION
from undoubt.coordinator.paxos import AcceptorReply, AcceptorRequest
from undoubt.coordinator.rpc.client import SILENCE_S, Liveness, PendingCall, Replies
from undoubt.coordinator.rpc.envelope import REQUESTS_PER_FRAME_MAX, Request, decode_answers, encode
from undoubt.coordinator.wire import (
    Address,
    Connection,
    HandshakeRefused,
    PeerIdentity,
    WireSettings,
    connect,
)

log = logging.getLogger(__name__)

CONNECT_S = 1.0

ReplyCallback = Callable[[AcceptorReply | Exception], None]
AddressOf = Callable[[int], Awaitable[str]]
"""Finds the address of a node by its number. Raises ``LedgerUnavailable``."""


class AcceptorClient:
    """The connections of this process to the acceptors."""

    def __init__(self, me: PeerIdentity, settings: WireSettings, address_of: AddressOf) -> None:
        self._me = me
        self._settings = settings
        self._address_of = address_of
        self._links: dict[int, _Link] = {}

    def ask(self, node: int, request: AcceptorRequest, answer: ReplyCallback) -> None:
        """Send ``request`` to ``node``. ``answer`` is called once, with the reply or with the error."""
        self.to(node).ask(request, answer)

    def to(self, node: int) -> _Link:
        """The connection to ``node``; begins to connect if there is none."""
        link = self._links.get(node)
        if link is None or link.gone:
            link = self._links[node] = _Link(self, node)
        return link

    async def connect(self, node: int, link: _Link) -> Connection:
        connection = await connect(
            Address.parse(await self._address_of(node)),
            self._me,
            link.accept,
            self._settings,
            timeout_s=CONNECT_S,
            for_number=node,
        )
        if connection.version < PAXOS_VERSION:
            connection.abort("its version is too old")
            raise ConnectionError(f"node {node} uses version {connection.version}, which has no acceptors")
        return connection

    async def close(self) -> None:
        links, self._links = list(self._links.values()), {}
        for link in links:
            await link.close()


class _Link:
    """The connection to one acceptor. A Receiver."""

    def __init__(self, links: AcceptorClient, node: int) -> None:
        self.gone = False
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._accepted: Connection | None = None
        self._connection: Connection | None = None
        """The accepted connection, once its handshake and version are checked."""
        self._replies = Replies[PendingCall]()
        self._unsent: list[Request[AcceptorCall]] = []
        self._flushing = False
        self._silence = Liveness()
        self._silence_timer: asyncio.TimerHandle | None = None
        self._connecting = self._loop.create_task(self._connect(links), name=f"undoubt-acceptor-{node}")

    def accept(self, connection: Connection) -> _Link:
        self._accepted = connection
        return self

    def ask(self, request: AcceptorRequest, answer: ReplyCallback) -> None:
        number = self._replies.add(PendingCall(messages.decode_reply, answer))
        self._unsent.append(Request(number, AcceptorCall(request)))
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._connection is not None and self._unsent and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        unsent, self._unsent = self._unsent, []
        if self._connection is not None:
            for first in range(0, len(unsent), REQUESTS_PER_FRAME_MAX):
                self._connection.send(encode(unsent[first : first + REQUESTS_PER_FRAME_MAX]))
            self._silence.asked(self._loop.time())
            if self._silence_timer is None:
                self._silence_timer = self._loop.call_later(SILENCE_S, self._check_silence)

    def _check_silence(self) -> None:
        """Close the connection if the node has sent nothing for :data:`SILENCE_S` while it owes an answer."""
        self._silence_timer = None
        connection = self._connection
        if connection is None or not self._replies.waiting:
            return
        left_s = SILENCE_S - self._silence.seconds(self._loop.time())
        if left_s > 0:
            self._silence_timer = self._loop.call_later(left_s, self._check_silence)
        else:
            self.lost("it does not answer")
            connection.abort("it does not answer")

    async def _connect(self, links: AcceptorClient) -> None:
        try:
            connection = await links.connect(self._node, self)
        except (OSError, HandshakeRefused, LedgerUnavailable) as error:
            self.lost(str(error))
            return
        if not self.gone:
            self._connection = connection
            self._flush_soon()

    def received(self, payload: bytes) -> None:
        self._silence.received(self._loop.time())
        self._replies.received(decode_answers(payload))

    def lost(self, why: str) -> None:
        self.gone = True
        self._connection = None
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        self._replies.fail(lambda: LedgerUnavailable(f"node {self._node}: {why}"))

    async def close(self) -> None:
        self.lost("closed by this side")
        self._connecting.cancel()
        await asyncio.gather(self._connecting, return_exceptions=True)
        if self._accepted is not None:
            self._accepted.abort("closed by this side")


async def first_of(answers: Sequence[Awaitable[str]]) -> str:
    """The first result of ``answers``. Raises the last ``LedgerUnavailable`` if all of them fail."""
    tasks = [asyncio.ensure_future(answer) for answer in answers]
    trouble: Exception = LedgerUnavailable("the cluster has no addresses")
    try:
        for task in asyncio.as_completed(tasks):
            try:
                return await task
            except LedgerUnavailable as error:
                trouble = error
        raise trouble
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
