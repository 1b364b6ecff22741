"""Explains one prepared branch: what is known, the safe action, and the proof that it is safe.

An explanation states only what is known: what the ledger recorded, what the databases list now, and what
follows from the ledger's two rules (:mod:`undoubt.coordinator.ledger.contract`). Where nothing follows, it
says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from undoubt.coordinator.ledger.contract import (
    Heuristic,
    Ledger,
    RecordedDecision,
    SessionInfo,
    TransactionInfo,
)
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Gid
from undoubt.participants.registry import Registry
from undoubt.recovery.last_agent import Agents
from undoubt.recovery.operator.holding_cost import Burden, burden, waits_of
from undoubt.recovery.operator.survey import ROLE_GONE, Survey, SurveyedBranch
from undoubt.recovery.plan import BranchStanding


@dataclass(frozen=True, slots=True)
class VoteNow:
    """One branch of the transaction. ``vote`` is ``prepared`` or ``not_recorded``. ``now`` is what its
    database shows at this moment: ``prepared``, ``not_prepared`` or ``no_answer``."""

    number: int
    participant: str
    vote: str
    now: str
    evidence_xid: int | None
    xid: int | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """``info`` and ``session`` come from the ledger, None where it has none. ``burden`` is what the branch
    blocks. ``command`` carries out the safe action, None where no action is proved to be safe. ``proof`` says
    in sentences why it is safe."""

    found: SurveyedBranch
    info: TransactionInfo | None
    session: SessionInfo | None
    votes: tuple[VoteNow, ...]
    burden: Burden
    command: str | None
    proof: tuple[str, ...]


async def explain(ledger: Ledger, participants: Registry, found: SurveyedBranch, seen: Survey) -> Explanation:
    """Everything that is known about ``found``. Raises ``LedgerError``."""
    gid = found.branch.gid
    info = session = None
    if isinstance(gid, Gid) and found.standing.ours:
        info = await ledger.transaction(gid.txid)
        session = next((one for one in await ledger.sessions() if _began(one, gid)), None)
    weighs = burden(found, await waits_of(participants.get(found.participant)))
    votes = _votes(found, info, seen)
    proof = list(_proof(found, info, session))
    if found.asks_agent and isinstance(gid, Gid):
        shown = await Agents(ledger, participants).describe(gid)
        proof.append(f"{shown[0].upper()}{shown[1:]}.")
    if found.branch.owner_gone and found.standing.ours:
        proof.append(mending(found))
    proof += [sibling_line(one) for one in seen.siblings(found)]
    return Explanation(found, info, session, votes, weighs, _command(found), tuple(proof))


def _began(session: SessionInfo, gid: Gid) -> bool:
    return (session.id, session.nonce) == (gid.txid.session, gid.txid.nonce)


def _votes(found: SurveyedBranch, info: TransactionInfo | None, seen: Survey) -> tuple[VoteNow, ...]:
    """One entry for each branch that the ledger or a participant knows."""
    gid = found.branch.gid
    if not isinstance(gid, Gid) or not found.standing.ours:
        return ()
    prepared = {
        one.branch.gid.branch: one
        for one in seen.of(gid.txid)
        if isinstance(one.branch.gid, Gid) and one.standing.ours
    }
    recorded = {record.number: record for record in (info.branches if info else ())}
    committed = info is not None and info.record is RecordedDecision.COMMIT
    votes = []
    for number in sorted(prepared.keys() | recorded.keys()):
        here, record = prepared.get(number), recorded.get(number)
        name = here.participant if here is not None else recorded[number].participant
        absent = "no_answer" if name in seen.unreachable else "not_prepared"
        now = "prepared" if here is not None else absent
        # Each branch recorded with a COMMIT voted for it. Other votes are not recorded, and a branch that is
        # visible as prepared has not necessarily voted.
        vote = "prepared" if committed and record is not None else "not_recorded"
        xid = here.branch.xid if here is not None else None
        votes.append(VoteNow(number, name, vote, now, record.xid if record is not None else None, xid))
    return tuple(votes)


def _command(found: SurveyedBranch) -> str | None:
    gid = found.branch.gid
    if found.branch.owner_gone and found.fix is not None:
        return found.fix
    match found.standing:
        case BranchStanding.COMMITTED:
            return f"undoubt indoubt commit {gid}"
        case BranchStanding.ABORTED:
            return f"undoubt indoubt rollback {gid}"
        case BranchStanding.ACTIVE | BranchStanding.ASK_PROTOCOL:
            return f"undoubt indoubt wait {gid}"
        case BranchStanding.LOST_LEDGER if isinstance(gid, Gid):
            return f"undoubt recover --adopt {gid.ledger}"
        case _:
            return None


_NO_PROOF = {
    BranchStanding.ASK_PROTOCOL: [
        "No decision is recorded, and for this protocol that proves nothing: the termination of the protocol,"
        " which recovery runs, finds the decision."
    ],
    BranchStanding.FORGOTTEN: [
        "There is no proof. The ledger has no session of that number and nonce: it was dropped after its"
        " retention, or the ledger was restored from a backup.",
        "The transaction may have committed elsewhere. Compare with its other databases and the"
        " application's own records, then commit or roll back with --heuristic and a --note.",
    ],
    BranchStanding.IMPOSTOR: [
        "It is not the branch that its name says: it was prepared under a forged or used name, or the"
        " database is a copy of another one, or was restored. Recovery never changes it, and no transaction"
        " waits for it.",
        "The program that prepared it can end it; find out which program that is: any role that may connect"
        " can prepare. Once you know that it is not needed, undoubt indoubt rollback ends it, and records"
        " nothing.",
    ],
    BranchStanding.LOST_LEDGER: [
        "There is no proof. Name, database and owner are those of this installation's branches, but the"
        " ledger is another one. If that ledger still exists, find its configuration, or restore it: it has"
        " the decision.",
        "If that ledger is lost, `undoubt recover --adopt` shows what else is known about the transaction,"
        " ends what its own protocol can end, and leaves the rest to you. If it is the ledger of another"
        " installation that uses this database, name it in the participant's other_ledgers.",
    ],
    BranchStanding.OTHER_LEDGER: [
        "Its decision is in another ledger, whose id is in its name: only the recovery of that ledger may"
        " finish it."
    ],
    BranchStanding.NOT_KNOWN: ["What would prove it does not answer: look again once it does."],
    BranchStanding.FOREIGN: [
        "This name is not of undoubt. The program that prepared it must finish it; undoubt never changes it."
    ],
}


def _proof(found: SurveyedBranch, info: TransactionInfo | None, session: SessionInfo | None) -> list[str]:
    match found.standing:
        case BranchStanding.COMMITTED:
            return _proof_of_commit(found, info)
        case BranchStanding.ABORTED:
            return _proof_of_abort(found, info, session)
        case BranchStanding.ACTIVE:
            return _no_proof_while_active(session)
        case BranchStanding.IMPOSTOR:
            proof = [f"Why it is not ours: {found.why}.", *_NO_PROOF[BranchStanding.IMPOSTOR]]
            return proof if found.fix is None else [*proof, mending(found)]
        case standing:
            return _NO_PROOF[standing]


def sibling_line(one: Heuristic) -> str:
    """The heuristic outcome of another branch of the transaction, as one line."""
    kind = str(one.kind).replace("_", " ")
    note = f" ({one.note})" if one.note else ""
    return f"Another branch of its transaction has a {kind}: {one.gid}{note}."


def mending(found: SurveyedBranch) -> str:
    """What an operator does about an impostor with a ``fix``, or about a branch whose role was dropped."""
    if found.branch.owner_gone:
        statement = found.fix or "COMMIT PREPARED or ROLLBACK PREPARED, once it is decided which"
        sentence = ROLE_GONE[0].upper() + ROLE_GONE[1:]
        return f"{sentence}, in database {found.branch.database}: {statement}"
    where = f" in [participants.{found.participant}]" if found.fix and found.fix.startswith("owners") else ""
    return (
        f"Only its owner is wrong. If role {found.branch.owner} does prepare branches of participant"
        f" {found.participant!r}, configure that{where}, and recovery finishes it: {found.fix}"
    )


def _proof_of_commit(found: SurveyedBranch, info: TransactionInfo | None) -> list[str]:
    proof = [
        "COMMIT is recorded. The first decision recorded for a transaction is the only one: it cannot be"
        " aborted from now on, and other databases may have committed already."
    ]
    if info is None or info.record is not RecordedDecision.COMMIT:
        return proof
    if info.branches:
        names = ", ".join(record.participant for record in info.branches)
        proof.append(f"It was recorded only after every branch had voted prepared: {names}.")
    gid = found.branch.gid
    recorded = next((r for r in info.branches if isinstance(gid, Gid) and r.number == gid.branch), None)
    if recorded is not None and recorded.xid is not None and found.branch.xid is not None:
        proof.append(f"It is the very branch that voted: transaction id {found.branch.xid}, as recorded.")
    return proof


def _proof_of_abort(
    found: SurveyedBranch, info: TransactionInfo | None, session: SessionInfo | None
) -> list[str]:
    gid = found.branch.gid
    if info is not None and info.record == RecordedDecision(Decision.ABORT):
        return [
            "ABORT is recorded. The first decision recorded for a transaction is the only one: undoubt has"
            " sent COMMIT PREPARED to no database, and never will."
        ]
    proof = [
        "No COMMIT is recorded. undoubt records COMMIT before it sends COMMIT PREPARED, so it has sent none."
    ]
    if session is not None and str(session.state) != "open":
        proof.append(
            f"None can be recorded from now on: session {session.id} ({session.name}) is stored as"
            f" {session.state}."
        )
    elif session is not None and isinstance(gid, Gid):
        proof.append(
            f"None can be recorded from now on: the floor of its session is {session.floor}, and this is"
            f" number {gid.txid.seq}."
        )
    return proof


def _no_proof_while_active(session: SessionInfo | None) -> list[str]:
    name = f" of {session.name}" if session and session.name else ""
    ttl = f" within {session.ttl_s:g} s of its last renewal" if session else ""
    return [
        f"The session{name} that began the transaction holds its lease, and may record COMMIT at any moment."
        " To finish the branch now could contradict that, so recovery does not change it.",
        f"If the coordinator is dead, the lease ends{ttl}; then the branch is aborted, and it is safe to roll"
        " it back.",
    ]
