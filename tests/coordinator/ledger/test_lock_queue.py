"""The locks of the state machine against a model that shares no code with it.

The model is a list of requests in the order of asking, and the rule of fairness: a request holds the lock if
every one before it that is still there holds it, and the two can hold it together."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from undoubt.coordinator.errors import SessionLost
from undoubt.coordinator.ledger import commands as c
from undoubt.coordinator.ledger.contract import Session
from undoubt.coordinator.ledger.locks import LockEntry, LockRequest
from undoubt.coordinator.ledger.machine import Machine

NAMES = st.sampled_from(["a", "b"])
TURN = 1 << 32


@dataclass
class Asked:
    request: LockRequest
    token: int = 0


@dataclass
class Model:
    """``queues``: by name. ``highest``: of all tokens that were seen."""

    queues: dict[str, list[Asked]] = field(default_factory=dict)
    highest: int = 0

    def holders(self, name: str) -> list[Asked]:
        holding: list[Asked] = []
        for asked in self.queues.get(name, []):
            if holding and not (asked.request.shared and holding[-1].request.shared):
                break
            holding.append(asked)
        return holding


class LocksAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine("aaaaaaaaaa")
        self.machine.apply(c.Judge(c.RULES))
        self.model = Model()
        self.sessions: list[Session] = []
        self.ended: set[int] = set()
        self.requests: list[LockRequest] = []
        self.clock = 0.0
        for _ in range(3):
            self.open()

    def run(self, command: c.Command) -> object:
        return self.machine.apply(c.decode(c.encode(command)))

    @rule()
    def open_another(self) -> None:
        self.open()

    def open(self) -> None:
        nonce = f"{len(self.sessions):016x}"
        session = self.run(c.OpenSession(nonce, "s", 1000))
        assert isinstance(session, Session)
        self.sessions.append(session)

    @rule(data=st.data(), name=NAMES, shared=st.booleans(), wait=st.booleans())
    def ask(self, data: st.DataObject, name: str, shared: bool, wait: bool) -> None:
        session = data.draw(st.sampled_from(self.sessions[-4:]))
        number = len(self.requests) + 1
        request = LockRequest(name, session.id, session.nonce, number, shared, at=self.clock)
        self.requests.append(request)
        answer = self.run(c.AskLock(request, wait))
        if session.id in self.ended:
            assert isinstance(answer, SessionLost)
            return
        queue = self.model.queues.setdefault(name, [])
        queue.append(Asked(request))
        if self.model.holders(name)[-1].request == request:
            assert isinstance(answer, LockEntry)
            assert answer.granted
        elif wait:
            assert isinstance(answer, LockEntry)
            assert not answer.granted
        else:
            assert answer is None
            queue.pop()
        assert self.run(c.AskLock(request, wait)) == answer, "a repeated request is another one"

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if not self.requests:
            return
        request = data.draw(st.sampled_from(self.requests))
        queue = self.model.queues.get(request.name, [])
        there = [asked for asked in queue if asked.request == request]
        assert self.run(c.EndLock(request)) is bool(there)
        self.model.queues[request.name] = [asked for asked in queue if asked not in there]

    @rule(data=st.data(), expire=st.booleans())
    def end_session(self, data: st.DataObject, expire: bool) -> None:
        # Mostly one that has asked for something, or nearly no example ends a session that holds a lock.
        asking = {each.request.session for queue in self.model.queues.values() for each in queue}
        session = data.draw(
            st.sampled_from([each for each in self.sessions if each.id in asking] or self.sessions)
        )
        self.run(c.ExpireSession(session.id) if expire else c.CloseSession(session.id, session.nonce))
        self.drop({session.id})

    def drop(self, sessions: set[int]) -> None:
        self.ended |= sessions
        for name, queue in self.model.queues.items():
            self.model.queues[name] = [each for each in queue if each.request.session not in sessions]

    @rule(name=NAMES)
    def revoke(self, name: str) -> None:
        queue = self.model.queues.get(name, [])
        token = queue[0].token if queue else 77
        assert self.run(c.RevokeLock(name, token)) is bool(queue)
        self.model.queues[name] = queue[1:]

    @rule()
    def restore_from_backup(self) -> None:
        self.run(c.Restore(1))
        self.drop({session.id for session in self.sessions})
        self.model.highest += TURN
        self.open()

    @rule(seconds=st.sampled_from([-1e6, 0.001, 1.0, 1e9]))
    def the_wall_clock_jumps(self, seconds: float) -> None:
        self.clock = max(0.0, self.clock + seconds)

    @rule()
    def restart(self) -> None:
        snapshot = self.machine.snapshot()
        other = Machine("bbbbbbbbbb")
        other.restore(snapshot)
        assert other.snapshot() == snapshot, "a snapshot of a snapshot differs: replicas would diverge"
        assert other.state.locks.of_session == self.machine.state.locks.of_session
        self.machine = other

    @invariant()
    def holders_and_waiters_agree(self) -> None:
        found = {info.name: info for info in self.machine.state.locks.infos()}
        assert set(found) == {name for name, queue in self.model.queues.items() if queue}
        for name, info in found.items():
            queue = self.model.queues[name]
            assert [entry.request for entry in info.entries] == [asked.request for asked in queue]
            holders = self.model.holders(name)
            assert [entry.granted for entry in info.entries] == [asked in holders for asked in queue]
            self.check_tokens(list(zip(queue, info.entries, strict=True)))

    def check_tokens(self, pairs: list[tuple[Asked, LockEntry]]) -> None:
        held = [(asked, entry) for asked, entry in pairs if entry.granted]
        for asked, entry in held:
            if asked.token:
                assert entry.token == asked.token, "the token of a grant has changed"
            asked.token = entry.token
            assert entry.fence <= entry.token
            assert (entry.fence == entry.token) or entry.request.shared
        assert len({entry.fence for _, entry in held}) <= 1

    @invariant()
    def new_tokens_are_higher_than_all_before(self) -> None:
        tokens = [
            entry.token
            for info in self.machine.state.locks.infos()
            for entry in info.entries
            if entry.granted
        ]
        assert len(set(tokens)) == len(tokens)
        new = [token for token in tokens if token not in self.known]
        assert all(token > self.model.highest for token in new), (new, self.model.highest)
        self.known.update(new)
        self.model.highest = max([self.model.highest, *tokens])

    @property
    def known(self) -> set[int]:
        if not hasattr(self, "_known"):
            self._known: set[int] = set()
        return self._known


TestLocksAgainstModel = LocksAgainstModel.TestCase
TestLocksAgainstModel.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_a_backup_that_is_restored_twice_issues_no_token_twice() -> None:
    """Its counter counts the same numbers again; the clock does not."""

    def token_of_the_restored(snapshot: bytes, at: float) -> int:
        machine = Machine("aaaaaaaaaa")
        machine.restore(snapshot)
        machine.apply(c.Restore(TURN))
        session = machine.apply(c.OpenSession("1" * 16, "s", 1000))
        assert isinstance(session, Session)
        entry = machine.apply(c.AskLock(LockRequest("a", session.id, session.nonce, 1, at=at), True))
        assert isinstance(entry, LockEntry)
        return entry.token

    backup = Machine("aaaaaaaaaa").snapshot()
    first = token_of_the_restored(backup, 1_800_000_000.0)
    assert token_of_the_restored(backup, 1_800_000_060.0) > first + 1_000_000


def test_a_clock_that_is_wrong_by_centuries_uses_up_no_tokens() -> None:
    machine = Machine("aaaaaaaaaa")
    machine.apply(c.Judge(c.RULES))
    session = machine.apply(c.OpenSession("1" * 16, "s", 1000))
    assert isinstance(session, Session)
    tokens = []
    for number, at in enumerate([1.7e308, 0.0, -1.7e308, 1.8e9, 1e12], start=1):
        entry = machine.apply(
            c.AskLock(LockRequest(f"l{number}", session.id, session.nonce, number, at=at), True)
        )
        assert isinstance(entry, LockEntry), entry
        tokens.append(entry.token)
    assert tokens == sorted(set(tokens))
    assert tokens[-1] < 2**54
