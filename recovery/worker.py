"""One participant's worker: it repeats passes at its own pace, so that a participant that is down does not
delay the others."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.supervision import restarts
from undoubt.participants.backoff import limit_s
from undoubt.participants.contract import Participant, Settled
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import TxId
from undoubt.recovery import heuristics
from undoubt.recovery.promotion import PromotionCheck
from undoubt.recovery.report import ReportedBranch, WorkerStatus
from undoubt.recovery.resolve import RecoveryContext, Resolution, finish
from undoubt.recovery.scan import scan, unfinished
from undoubt.recovery.settings import RecoverySettings
from undoubt.recovery.sweep import SWEEP_INTERVAL_S, sweep

log = logging.getLogger(__name__)

PAUSE_MIN_S = 0.01
BACKOFF_BASE_S = 0.1
GONE_S = 5.0
"""A decision that is unfinished for longer may wait for a participant that an operator declared gone."""
HAZARDS_S = 10.0
"""How often a database is asked whether it proves the end of a branch whose hazard is open."""
LOGGED_MAX = 20
"""Number of branches that one pass logs; a missing right may concern thousands."""
YOUNG_S = 0.3
"""A live coordinator finishes its transactions in batches. Only an older decision was left behind by its
coordinator; only for such a decision are the databases asked what became of its branches."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What one pass over one participant saw and did. ``error`` says why it could not be completed.

    ``oldest_s`` is how long the oldest branch of this ledger had been prepared, 0 if there was none.
    ``owner_gone`` counts the branches whose role was dropped: only a superuser can end them.
    """

    lines: tuple[ReportedBranch, ...]
    finished: tuple[str, ...] = ()
    error: str | None = None
    oldest_s: float = 0.0
    owner_gone: int = 0

    def followed_by(self, later: Passed) -> Passed:
        """Both passes, with one line for a branch that both report: the later one."""
        anew = {line.gid for line in later.lines}
        return replace(self, lines=tuple(line for line in self.lines if line.gid not in anew)) + later

    def __add__(self, later: Passed) -> Passed:
        lines, finished = self.lines + later.lines, self.finished + later.finished
        return Passed(lines, finished, later.error, later.oldest_s, later.owner_gone)


async def one_pass(
    tools: RecoveryContext,
    participant: Participant,
    *,
    dry_run: bool = False,
    young_s: float = 0.0,
    hazards: bool = True,
) -> Passed:
    """Scan, then act. An error is in the result, beside what was done before it.

    A decision that was first seen less than ``young_s`` seconds ago is not judged yet. ``hazards``: close
    those of which the database proves that the branch ended as recorded.
    """
    lines: list[ReportedBranch] = []
    tools.counters.scans += 1
    try:
        records = await unfinished(tools.ledger)
        tools.progress.read(records, asyncio.get_running_loop().time())
        await _note_hazards(tools, records)
        seen = await scan(tools.ledger, participant, records, None if dry_run else tools.observe)
        resolution = Resolution(tools, participant, seen, dry_run=dry_run, young_s=young_s)
        lines = resolution.lines
        await resolution.run()
        finished = [] if dry_run else await finish(tools, seen)
        if not dry_run and (hazards or resolution.applied):
            await heuristics.close_proved(tools.ledger, participant, resolution.applied)
    except UndoubtError as error:  # the participant's, the ledger's, or it was closed meanwhile
        return Passed(tuple(lines), error=str(error))
    except Exception as error:
        # A bug of ours or of a driver's must not stop the other participants or the next pass.
        restarts["recovery worker"] += 1
        log.exception(
            "recovery of participant %r failed", participant.name, extra={"participant": participant.name}
        )
        return Passed(tuple(lines), error=f"unexpected {type(error).__name__}: {error}")
    ours = [branch for branch, stands in seen.prepared if stands.in_doubt]
    return Passed(
        tuple(lines),
        tuple(finished),
        oldest_s=max((branch.age_s for branch in ours), default=0.0),
        owner_gone=sum(branch.owner_gone for branch in ours),
    )


async def _note_hazards(tools: RecoveryContext, records: Mapping[TxId, DecisionRecord]) -> None:
    """Count as done the branches of a participant that an operator declared gone: their hazard is recorded,
    and no participant can say more."""
    now_s = asyncio.get_running_loop().time()
    if all(now_s - tools.progress.known_since(txid) < GONE_S for txid in records):
        return
    for known in await tools.ledger.heuristics(include_forgotten=True):
        if known.gid.txid in records and known.kind is Settled.HEURISTIC_HAZARD:
            tools.progress.done(known.gid)


class RecoveryWorker:
    """Repeats passes over ``participant`` while ``allowed()``. After a failure it pauses for a random time up
    to a limit that doubles (full jitter), so that not all processes return to a restarted database at once.
    ``on_pass`` receives each pass."""

    def __init__(
        self,
        participant: Participant,
        tools: RecoveryContext,
        settings: RecoverySettings,
        allowed: Callable[[], bool],
        rng: random.Random,
        *,
        on_pass: Callable[[str, Passed], None] | None = None,
    ) -> None:
        self.participant = participant
        self._tools = tools
        self._settings = settings
        self._allowed = allowed
        self._rng = rng
        self._on_pass = on_pass
        self._failures = 0
        self._hazards_s = -math.inf
        self._swept_s = asyncio.get_running_loop().time()
        self._promotion = PromotionCheck(tools.ledger, participant)
        self._tidied = b""
        """The key of the agent's row behind which the next sweep goes on."""
        self._last_error: str | None = None
        self._retry_at: float | None = None
        self._prepared = 0
        self._reported: tuple[str, ...] = ()
        self._refused: dict[str, str] = {}
        """The branches that the last pass could not end: the reason, by gid."""

    async def run(self) -> None:
        """Repeat passes until cancelled."""
        while True:
            if self._allowed():
                await self._pass()
                await self._sweep()
            await asyncio.sleep(self.pause_s())
            self._retry_at = None

    async def _pass(self) -> None:
        now_s = asyncio.get_running_loop().time()
        due = now_s - self._hazards_s >= HAZARDS_S
        passed = await one_pass(self._tools, self.participant, young_s=YOUNG_S, hazards=due)
        if due and passed.error is None:
            self._hazards_s = now_s if await self._look_for_lost() else -math.inf
        if self._on_pass is not None:
            self._on_pass(self.participant.name, passed)
        if passed.error is not None:
            self.failed(passed.error)
            return
        self._failures = 0
        failed = {line.gid: line.why for line in passed.lines if line.result == "failed"}
        self._last_error = next(iter(failed.values()), None)
        self._log(failed)
        listed = [line for line in passed.lines if line.standing is not None]
        self._prepared = len(listed)
        self._reported = tuple(line.gid for line in listed if line.action == "report")

    async def _look_for_lost(self) -> bool:
        """Look for what a promoted server has lost; False if the next pass has to go on."""
        try:
            return await self._promotion.go_on()
        except UndoubtError as error:
            log.info("what %r has lost is not known: %s", self.participant.name, error)
        except Exception:  # a bug of ours or of a driver's must not stop the resolving of branches
            restarts["recovery worker"] += 1
            log.exception("looking for what %r has lost failed", self.participant.name)
        return True

    def _log(self, failed: dict[str, str]) -> None:
        """Log each branch that cannot be ended, once: it stays so until an operator acts."""
        name = self.participant.name
        new = [gid for gid, why in failed.items() if self._refused.get(gid) != why]
        for gid in new[:LOGGED_MAX]:
            log.warning("recovery of participant %r: %s", name, failed[gid], extra={"participant": name})
        if left := new[LOGGED_MAX:]:
            log.warning("recovery of participant %r: %d branches more cannot be ended", name, len(left))
        self._refused = failed

    async def _sweep(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._swept_s < SWEEP_INTERVAL_S:
            return
        self._swept_s = now_s
        terminator = self._tools.terminator
        try:
            await sweep(self._tools.ledger, terminator, self.participant)
            self._tidied = await terminator.agents.tidy(self.participant, terminator.alive, self._tidied)
        except UndoubtError as error:
            log.info("old rows at %r are left: %s", self.participant.name, error)
        except Exception:  # a bug of ours or of a driver's must not stop the resolving of branches
            restarts["recovery worker"] += 1
            log.exception("sweeping old rows at %r failed", self.participant.name)

    def failed(self, why: str) -> None:
        """A pass has failed; the next pauses are longer."""
        self._failures += 1
        if why != self._last_error:
            name = self.participant.name
            log.warning("recovery of participant %r: %s", name, why, extra={"participant": name})
        self._last_error = why

    def pause_s(self) -> float:
        """How long to wait before the next pass, in seconds; drawn at random after a failure."""
        if not self._failures:
            return max(self._settings.interval_s, PAUSE_MIN_S)
        base_s = max(self._settings.interval_s, BACKOFF_BASE_S)
        longest_s = limit_s(base_s, self._settings.backoff_max_s, self._failures)
        pause_s = max(self._rng.uniform(0, longest_s), PAUSE_MIN_S)
        self._retry_at = asyncio.get_running_loop().time() + pause_s
        return pause_s

    def status(self) -> WorkerStatus:
        retry_in_s = None
        if self._retry_at is not None:
            retry_in_s = round(max(self._retry_at - asyncio.get_running_loop().time(), 0.0), 3)
        return WorkerStatus(
            self.participant.name,
            self._failures,
            self._last_error,
            retry_in_s,
            self._prepared,
            self._reported,
        )
