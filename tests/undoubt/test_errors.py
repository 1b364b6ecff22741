"""The tree of errors that ``undoubt.errors`` draws is the one that there is."""

from __future__ import annotations

import importlib
import pkgutil
import re

import undoubt
from tests.docs.pages import ROOT
from undoubt import errors
from undoubt.participants.errors import UndoubtError

INTERNAL = {
    "AgentBusy": "of a participant's agent, for the process that recovers",
    "AnchorUnusable": "within a store, as LedgerUnusable",
    "CommandError": "of the command line, which prints it",
    "CommandRefused": "of a ledger, as UsageError",
    "ConfigRefused": "of Raft, within a node",
    "ConnectionGone": "within the ledger's client, which asks again",
    "ContenderFailed": "of the benchmark",
    "EtcdRefused": "within the ledger's client, which names what it means",
    "LogSetBack": "within a node, as LedgerUnusable",
    "MessageRefused": "of Raft, within a node",
    "ChildFailed": "undoubt.serve.local",
    "NodeFailed": "of the demo",
    "NodeStopped": "within a node",
    "NotLeader": "of Raft, within a node",
    "NotLeading": "within a node",
    "PeerMisbehaved": "of Paxos, within a node",
    "ProposalRefused": "of Raft, within a node",
    "RaftRefusal": "of Raft, within a node",
    "StorageDamaged": "within a node, as LedgerUnusable",
    "StoreBroken": "within the SQLite ledger, as LedgerUnavailable",
    "StoreFull": "within the SQLite ledger, as LedgerUnavailable",
    "Undelivered": "of a sink of the relay, which delivers again",
    "UnexpectedAnswer": "of the benchmark",
    "WorkerFailed": "of the demo",
    "WrongCount": "of the benchmark",
}
"""What no application and no operator's program meets, or meets by the name of its base."""

OF_INTEGRATIONS = {"SidecarRefused": "sidecar.md", "SidecarOutcomeUnknown": "sidecar.md"}
"""Of modules that need an optional package, which ``undoubt.errors`` does not import; the page of each."""

LINE = re.compile(r"^    ([│├└─ ]*)([A-Z]\w+)(?:\s|$)")


def drawn() -> list[tuple[str, str]]:
    """Each error with the one above it, as the docstring shows them."""
    above: list[str] = []
    found = []
    for line in (errors.__doc__ or "").splitlines():
        if (match := LINE.match(line)) is not None:
            depth = len(match[1]) // 4
            del above[depth:]
            found.append((match[2], above[-1] if above else ""))
            above.append(match[2])
    return found


def subclasses(of: type[UndoubtError]) -> set[type[UndoubtError]]:
    found = set(of.__subclasses__())
    return found.union(*(subclasses(each) for each in found))


def test_the_drawing_is_the_tree() -> None:
    """Broken if an error is drawn beneath another one than it is caught by, or is not drawn at all."""
    pairs = drawn()
    assert sorted(name for name, _ in pairs) == sorted(errors.__all__)
    for name, above in pairs:
        bases = [base.__name__ for base in getattr(errors, name).__bases__ if issubclass(base, UndoubtError)]
        assert ([above] if above else []) == bases, name


def test_all_errors_are_there() -> None:
    """Broken if a program can meet an error that ``undoubt.errors`` does not have."""
    for module in pkgutil.walk_packages(undoubt.__path__, "undoubt."):
        if not module.name.endswith("__main__") and "migrations" not in module.name:
            importlib.import_module(module.name)
    known = {each.__name__ for each in subclasses(UndoubtError) if each.__module__.startswith("undoubt.")}
    assert known - set(errors.__all__) == INTERNAL.keys() | OF_INTEGRATIONS.keys()
    for name, page in OF_INTEGRATIONS.items():
        assert f"`{name}`" in (ROOT / "docs" / page).read_text()


def test_the_pages_name_those_that_there_are() -> None:
    """Broken if the table of errors leaves out one that every application has to think of, or names none."""
    page = (ROOT / "docs" / "library.md").read_text()
    table = page[page.index("## What each error means") :]
    named = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    example = (ROOT / "examples" / "outcomes.py").read_text()
    for name in (
        "TransactionAborted",
        "OutcomeUnknown",
        "HeuristicOutcome",
        "ParticipantUnavailable",
        "ParticipantRefused",
    ):
        assert name in named
        assert re.search(rf"except undoubt\.(errors\.)?{name}\b", example), name
    assert named <= {"CancelledError", *errors.__all__}


PAGES = ("exactly-once", "frameworks", "locks", "outbox", "sqlalchemy")


def test_errors_that_pages_name_without_a_module_are_in_undoubt() -> None:
    """Broken if a program that catches what a page names fails with an AttributeError instead."""
    for page in PAGES:
        named = set(re.findall(r"`(?:undoubt\.)?([A-Z]\w+)`", (ROOT / "docs" / f"{page}.md").read_text()))
        assert (named & {*errors.__all__}) - {*undoubt.__all__} == set(), page
