"""The contract of the ledger for a client of a cluster, and the connection to the leader.

:class:`ClusterLedger` passes each call to :class:`LeaderClient`, which has one connection, to the leader. If
another node leads, it finds that node. All unanswered calls are sent again on each new connection. The calls
of one turn of the loop are sent in one frame. One timer checks the time limits of all calls."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence, Set
from functools import partial
from random import Random, SystemRandom
from typing import Any, TypeVar

import msgspec

from undoubt.coordinator.errors import LedgerUnavailable, LedgerUnusable, VersionHeldBack, WrongProcess
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.calls import CallingLedger
from undoubt.coordinator.ledger.cluster.acceptor_client import AcceptorClient, first_of
from undoubt.coordinator.ledger.cluster.acceptors import ClusterAcceptors, among
from undoubt.coordinator.ledger.cluster.messages import DECODE_REPLY, decode_call
from undoubt.coordinator.ledger.cluster.status import status
from undoubt.coordinator.ledger.cluster.url import addresses_of, wire_of
from undoubt.coordinator.ledger.contract import RecordedDecision, Session, SessionInfo
from undoubt.coordinator.ledger.ledger_call import LedgerCall
from undoubt.coordinator.rpc.calls import AnyCall
from undoubt.coordinator.rpc.client import (
    CALL_BYTES_MAX,
    SILENCE_S,
    Liveness,
    PendingCall,
    Replies,
    into,
    judged,
)
from undoubt.coordinator.rpc.envelope import (
    REQUESTS_PER_FRAME_MAX,
    Answer,
    LeaderHint,
    Request,
    decode_answers,
    encode,
)
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import (
    VERSIONS,
    Address,
    Connection,
    HandshakeRefused,
    PeerIdentity,
    PeerRole,
    WireSettings,
    connect,
)
from undoubt.participants.backoff import pauses_around
from undoubt.participants.ids import TxId
from undoubt.participants.redact import redact

log = logging.getLogger(__name__)

SWEEP_S = 0.1
PAUSE_S = (0.02, 0.2)
"""The pauses between two rounds over all nodes, in seconds: the shortest and the longest."""

R = TypeVar("R")


class ClusterLedger(CallingLedger):
    """The client of a cluster's ledger. Made by :meth:`open`. May be used only in the event loop and the
    process in which it was opened."""

    acceptors: ClusterAcceptors

    def __init__(
        self,
        route: LeaderClient,
        settings: LedgerSettings,
        me: PeerIdentity,
        wire: WireSettings,
        random: Random,
    ) -> None:
        self.settings = settings
        self.leader_client = route
        self._wire = wire
        self.acceptor_client = AcceptorClient(me, wire, self._address_of)
        self._pid = os.getpid()
        self._ledger_id = ""
        self._random = random
        self.acceptors = ClusterAcceptors(
            self.acceptor_client.ask,
            self._open_bound,
            self._session_of,
            self._record,
            random,
            voters=self._voters,
            timeout_s=settings.request_timeout_s,
        )

    @classmethod
    async def open(
        cls,
        settings: LedgerSettings,
        wire: WireSettings | None = None,
        *,
        random: Random | None = None,
        name: str = "",
    ) -> ClusterLedger:
        """Find the cluster's leader. ``random`` draws nonces and pauses. Raises ``LedgerMisconfigured`` for
        an invalid URL or TLS files, ``LedgerUnavailable`` if no leader answers within
        ``request_timeout_s``."""
        random = random or SystemRandom()
        me = PeerIdentity(PeerRole.CLIENT, name=name or f"process {os.getpid()}")
        wire = wire or wire_of(settings)
        route = LeaderClient(addresses_of(settings.url), me, wire, random)
        ledger = cls(route, settings, me, wire, random)
        try:
            await ledger.info()
        except BaseException:
            await route.close()
            raise
        return ledger

    @property
    def ledger_id(self) -> str:
        return self._ledger_id

    @property
    def leads(self) -> bool:
        """False: recovery runs in the node that leads, not in clients."""
        return False

    async def close(self) -> None:
        if os.getpid() == self._pid:
            await self.acceptor_client.close()
            await self.leader_client.close()

    async def _open_bound(self, name: str, ttl_s: float) -> Session:
        return await self._open_session(name, ttl_s, bind=True)

    async def _session_of(self, txid: TxId) -> SessionInfo | None:
        return among(await self.sessions(), txid)

    async def _record(self, txid: TxId) -> RecordedDecision:
        return (await self.records([txid]))[txid]

    async def _voters(self) -> Sequence[int]:
        voters: Sequence[int] = await self._call(calls.VotersCall())
        return voters

    async def _address_of(self, node: int) -> str:
        """The address of ``node``. All nodes are asked, and the first that knows it answers: the leader may
        be the node that is gone, and any other may have been stopped or removed while others joined."""

        async def answer_of(address: str) -> str:
            members = await self._members(address)
            if node not in members:
                raise LedgerUnavailable(f"node at {address} does not know node {node}")
            return members[node]

        return await first_of([answer_of(str(one)) for one in addresses_of(self.settings.url)])

    async def _members(self, address: str) -> Mapping[int, str]:
        seen = await status(address, self.settings.request_timeout_s, self._wire)
        if seen.status is None:
            raise LedgerUnavailable(f"node at {address}: {seen.error}")
        if not seen.status.nodes:
            raise LedgerUnavailable(f"node at {address} has joined, and has no state yet")
        return seen.status.nodes

    def _request(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def _nonce(self) -> str:
        return f"{self._random.getrandbits(64):016x}"

    async def _call(self, call: LedgerCall[R]) -> R:
        if os.getpid() != self._pid:
            raise WrongProcess(
                f"this ledger was opened by process {self._pid}; after a fork, open the ledger again"
            )
        result: R = await self.leader_client.ask(call, self.settings.request_timeout_s)
        if self.leader_client.ledger_id != self._ledger_id:
            self._identify()
        return result

    def _identify(self) -> None:
        found = self.leader_client.ledger_id
        if self._ledger_id not in {"", found}:
            raise LedgerUnusable(
                f"at {redact(self.settings.url)} there is another ledger now ({found}; it was"
                f" {self._ledger_id})"
            )
        self._ledger_id = found


class _Pending(PendingCall):
    __slots__ = ("call", "deadline", "judged")

    def __init__(
        self, call: AnyCall, judged: msgspec.Raw, future: asyncio.Future[Any], deadline: float
    ) -> None:
        super().__init__(DECODE_REPLY[type(call)], into(future))
        self.call = call
        self.judged = judged
        self.deadline = deadline


class LeaderClient:
    """The connection to the leader. ``addresses`` are those of the URL; nodes may return another address of
    the leader."""

    def __init__(
        self,
        addresses: Sequence[Address],
        me: PeerIdentity,
        settings: WireSettings,
        random: Random,
    ) -> None:
        self.ledger_id = ""
        """The id of the ledger, as the last leader reported it."""
        self._addresses = list(addresses)
        self._me = me
        self._settings = settings
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._replies = Replies[_Pending](follows=True)
        self._unsent: list[int] = []
        self.link: Link | None = None
        self._hint: Address | None = None
        self._finding: asyncio.Task[None] | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._last_trouble = "no node was reached yet"
        self._closed = False

    def ask(self, call: AnyCall, timeout_s: float) -> asyncio.Future[Any]:
        """Send ``call``. The future has the leader's answer, or ``LedgerUnavailable`` after ``timeout_s``
        seconds. Raises ``UsageError`` for a call that no node accepts; such a call is not sent."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._closed:
            future.set_exception(LedgerUnavailable("the ledger is closed"))
            return future
        read = judged(call, decode_call)
        number = self._replies.add(_Pending(call, read, future, self._loop.time() + timeout_s))
        if self.link is not None:
            self._queue(number)
        else:
            self._find()
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        return future

    async def close(self) -> None:
        self._closed = True
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.gather(self._finding, return_exceptions=True)
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._leave("closed by this side")
        self._fail(list(self._replies.waiting), "the ledger is closed")

    # Sending calls.

    def _queue(self, number: int) -> None:
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(number)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self.link is None:
            return  # sent on the next connection, with all unanswered calls
        if self.link.version < VERSIONS.highest:
            unsent = self._understood(self.link, unsent)
        frame: list[Request[msgspec.Raw]] = []
        size = 0
        for number in unsent:
            pending = self._replies.waiting.get(number)
            if pending is None:
                continue  # its time limit has passed
            size += len(memoryview(pending.judged))
            if frame and (len(frame) >= REQUESTS_PER_FRAME_MAX or size > CALL_BYTES_MAX):
                self.link.send(encode(frame))
                frame, size = [], len(memoryview(pending.judged))
            frame.append(Request(number, pending.judged))
        if frame:
            self.link.send(encode(frame))

    def _understood(self, link: Link, numbers: list[int]) -> list[int]:
        """``numbers`` without the calls that need a newer version than that of the connection. Those are
        refused after it is confirmed, by another call, that the node leads."""
        waiting = [number for number in numbers if number in self._replies.waiting]
        late = {number for number in waiting if self._replies.waiting[number].call.since() > link.version}
        if late:
            asked = self.ask(calls.RecordsCall(()), SILENCE_S)
            asked.add_done_callback(partial(self._refuse, link, late))
        return [number for number in waiting if number not in late]

    def _refuse(self, link: Link, late: Set[int], asked: asyncio.Future[Any]) -> None:
        if asked.cancelled() or asked.exception() is not None or link is not self.link:
            return  # the calls are sent to the next leader, or their time limit passes
        for number in late:
            pending = self._replies.waiting.pop(number, None)
            if pending is not None:
                why = (
                    f"{link.name}, which leads, uses version {link.version}, and this needs"
                    f" {pending.call.since()}"
                )
                pending.resolve(VersionHeldBack(f"the cluster's version is older: {why}"))

    def answered(self, link: Link, answers: Sequence[Answer]) -> None:
        """Handle the answers of the node that is used as the leader; answers of other nodes are ignored."""
        if link is not self.link:
            return
        elsewhere = self._replies.received(answers)
        if elsewhere is not None:
            self._last_trouble = elsewhere.why
            self._move(elsewhere.leader)

    def lost(self, link: Link, why: str) -> None:
        if link is self.link:
            self._last_trouble = why
            self.link = None
            if self._replies.waiting and not self._closed:
                self._find()

    def _move(self, leader: str) -> None:
        """Look for the leader: the present node does not lead, or no longer. ``leader``: the address that it
        reported."""
        former = "" if self.link is None else self.link.address
        self._leave("it does not lead")
        self._hint = Address.parse(leader) if leader else None
        self._find(pause=leader in {"", former})

    def _leave(self, why: str) -> None:
        link, self.link = self.link, None
        if link is not None:
            link.close(why)

    def _sweep(self) -> None:
        self._sweeping = None
        now = self._loop.time()
        self._fail([n for n, pending in self._replies.waiting.items() if pending.deadline <= now], "")
        if not self._replies.waiting:
            return
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        link = self.link
        if link is not None and link.silence.seconds(now) > SILENCE_S:
            self._last_trouble = f"{link.name} does not answer"
            self._leave("it does not answer")
            self._hint = None
            self._find()

    def _fail(self, numbers: Sequence[int], why: str) -> None:
        for number in numbers:
            self._replies.waiting.pop(number).resolve(LedgerUnavailable(why or self._why_unanswered()))

    def _why_unanswered(self) -> str:
        nodes = ", ".join(str(address) for address in self._addresses)
        return f"no answer in time from the ledger's cluster ({nodes}); last: {self._last_trouble}"

    # Finding the leader.

    def _find(self, *, pause: bool = False) -> None:
        if self._finding is None or self._finding.done():
            self._finding = self._loop.create_task(self._look(pause), name="undoubt-ledger-find")

    async def _look(self, pause: bool) -> None:
        """Try all nodes in rounds, until the leader is connected or no call waits."""
        pauses = pauses_around(*PAUSE_S, self._random)
        if pause:
            await asyncio.sleep(PAUSE_S[1] * self._random.random())
        while not self._closed and self.link is None and self._replies.waiting:
            if await self._try_all():
                return
            await asyncio.sleep(next(pauses))

    async def _try_all(self) -> bool:
        """One round: the reported address of the leader, then all nodes. True if the leader is connected."""
        asked: set[Address] = set()
        waiting = [*self._addresses]
        self._random.shuffle(waiting)
        while waiting or self._hint is not None:
            address, self._hint = self._hint or waiting.pop(), None
            if address in asked:
                continue
            asked.add(address)
            link = await self._connect(address)
            if link is not None and link.standing is not None and link.standing.leads:
                self._adopt(link)
                return True
            if link is not None:
                self._follow(link)
        return False

    def _follow(self, link: Link) -> None:
        """Close ``link``, whose node does not lead, and keep the leader that it reported as the next
        address."""
        standing = link.standing
        link.close("it does not lead")
        if standing is not None and standing.leader:
            self._hint = Address.parse(standing.leader)
            self._last_trouble = f"{link.name} reports {standing.leader} as the leader"
        else:
            self._last_trouble = f"{link.name} knows no leader"

    async def _connect(self, address: Address) -> Link | None:
        link = Link(self, str(address))
        try:
            await connect(address, self._me, link.accept, self._settings, timeout_s=SILENCE_S)
            async with asyncio.timeout(SILENCE_S):
                await link.stands
        except TimeoutError:
            self._last_trouble = f"node at {address} does not answer"
            link.close("it does not answer")
            return None
        except (OSError, HandshakeRefused) as error:
            self._last_trouble = str(error)
            return None
        return link

    def _adopt(self, link: Link) -> None:
        if link.standing is not None:
            self.ledger_id = link.standing.ledger_id
        self.link = link
        self._unsent.clear()
        for number in self._replies.waiting:
            self._queue(number)
        link.silence.asked(self._loop.time())


class Link:
    """One connection of a :class:`LeaderClient`. ``stands`` is done once the node has sent its
    :class:`.LeaderHint`."""

    def __init__(self, route: LeaderClient, address: str) -> None:
        self.address = address
        self.name = f"node at {address}"
        self.standing: LeaderHint | None = None
        self.stands: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.silence = Liveness()
        self._loop = asyncio.get_running_loop()
        self.leader_client = route
        self._connection: Connection | None = None

    def accept(self, connection: Connection) -> Link:
        self._connection = connection
        return self

    def received(self, payload: bytes) -> None:
        self.silence.received(self._loop.time())
        answers = decode_answers(payload)
        for answer in answers:
            if isinstance(answer, LeaderHint) and not self.stands.done():
                self.standing = answer
                self.stands.set_result(None)
        self.leader_client.answered(self, answers)

    def lost(self, why: str) -> None:
        if not self.stands.done():
            self.stands.set_exception(ConnectionError(why))
            self.stands.exception()  # marks it as retrieved: the waiting caller may have been cancelled
        self.leader_client.lost(self, why)

    @property
    def version(self) -> int:
        """The version of the connection."""
        return VERSIONS.lowest if self._connection is None else self._connection.version

    def send(self, payload: bytes) -> None:
        if self._connection is not None:
            self.silence.asked(self._loop.time())
            self._connection.send(payload)

    def close(self, why: str) -> None:
        if self._connection is not None:
            self._connection.abort(why)
