"""What no sound member would ever say: a message is judged before it changes anything.

What is refused here is a bug, or damage, at the peer that sent it: it costs that peer its connection, and
this node nothing. A peer that lies in sound words is outside of what Raft survives: whoever may send as a
member (TLS's certificates say who) is believed.
"""

from __future__ import annotations

from typing import NoReturn

import msgspec

from undoubt.coordinator.raft.errors import ConfigRefused, MessageRefused
from undoubt.coordinator.raft.membership import after
from undoubt.coordinator.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Kind,
    Message,
    SnapshotChunk,
    TimeoutNow,
    decode_change,
)
from undoubt.coordinator.raft.state import RaftState

TERM_JUMP_MAX = 2**32
"""A term that is further ahead was never reached by elections: one a second would take a hundred years. It
would bring the terms of all nodes near the highest number that a message can carry."""


def judge(state: RaftState, message: Message) -> None:
    """Changes nothing. Raises :class:`MessageRefused`."""
    if message.term > state.term + TERM_JUMP_MAX:
        _refuse(message, f"its term {message.term} is out of reach from {state.term}")
    if message.term < state.term or message.to != state.node:
        return
    match message:
        case Append() | Heartbeat() | SnapshotChunk() | TimeoutNow():
            _judge_leader(state, message)
        case AppendReply() if state.leads and message.term == state.term and not message.rejected:
            if message.index > state.log.last_index:
                _refuse(message, f"it acknowledges entry {message.index}, which was never sent")
        case HeartbeatReply() if state.leads and message.term == state.term:
            if message.round > state.reads.round:
                _refuse(message, f"it answers heartbeats of round {message.round}, which were never sent")
        case _:
            pass


def _judge_leader(state: RaftState, message: Append | Heartbeat | SnapshotChunk | TimeoutNow) -> None:
    known = state.node if state.leads else state.leader
    if message.sender == state.node or (message.term == state.term and known not in (0, message.sender)):
        _refuse(message, f"node {known} leads in term {state.term}")
    if isinstance(message, Append):
        _judge_entries(state, message)
    elif isinstance(message, SnapshotChunk):
        meta = message.meta
        if meta.term > message.term or not meta.configuration.incoming:
            _refuse(message, "that snapshot stands for no log of this cluster")


def _judge_entries(state: RaftState, message: Append) -> None:
    """What is damaged on its way is none of this: the entry's checksum tells, and it is asked for again."""
    index, term, log = message.prev_index, message.prev_term, state.log
    changes = False
    for entry in message.entries:
        index += 1
        here = log.term(index) if index <= log.commit else None
        if entry.index != index or not term <= entry.term <= message.term or here not in (None, entry.term):
            if all(each.intact for each in message.entries):
                _refuse(message, f"its entry {entry.index} of term {entry.term} cannot follow {index - 1}")
            return
        term = entry.term
        changes = changes or entry.kind is Kind.CONFIG
    if changes and all(each.intact for each in message.entries):
        _judge_changes(state, message)


def _judge_changes(state: RaftState, message: Append) -> None:
    """Of the configuration; as far as they would be taken into the log."""
    log = state.log
    if message.prev_index >= log.commit and not log.matches(message.prev_index, message.prev_term):
        return
    new = [
        entry
        for entry in message.entries
        if entry.index > log.commit and not log.matches(entry.index, entry.term)
    ]
    if not new:
        return
    configuration = state.history.at(new[0].index - 1)
    for entry in new:
        if entry.kind is Kind.CONFIG:
            try:
                configuration = after(configuration, decode_change(entry.data))
            except (msgspec.MsgspecError, UnicodeDecodeError, ConfigRefused) as error:
                _refuse(message, f"its entry {entry.index} is no change of the members: {error}")


def _refuse(message: Message, why: str) -> NoReturn:
    raise MessageRefused(f"node {message.sender} sent {type(message).__name__}: {why}")
