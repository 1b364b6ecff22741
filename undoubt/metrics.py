"""Exports metrics to Prometheus: ``undoubt.connect(…, metrics=Metrics())``.

Needs the extra ``metrics`` (prometheus_client). The coordinator and recovery call the methods of
:class:`Metrics` (:mod:`undoubt.coordinator.meter`, :mod:`undoubt.recovery.meter`); :class:`TimedLedger`
times a ledger's calls. A relay calls those of :class:`OutboxMetrics` (:mod:`undoubt.relay.meter`).

A transaction id is never a label: each id would add a time series for ever
(https://prometheus.io/docs/practices/naming/#labels).
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter as Count
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from undoubt.coordinator import supervision
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.settings import PROTOCOL_NAMES
from undoubt.participants.contract import Settled
from undoubt.participants.ids import Gid, Protocol
from undoubt.participants.outbox import Backlog
from undoubt.recovery.plan import BranchStanding
from undoubt.recovery.worker import Passed

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

try:
    from prometheus_client import REGISTRY, Counter, Gauge, Histogram
    from prometheus_client.core import CounterMetricFamily
except ImportError as error:
    raise ImportError("undoubt.metrics needs prometheus_client: pip install 'undoubt[metrics]'") from error

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
"""Upper bounds of the histograms' buckets: from one round trip to the default timeout of a transaction."""

LEDGER_CALLS = (
    "open_session",
    "keep_alive",
    "close_session",
    "precommit",
    "decide",
    "outcomes",
    "records",
    "unfinished",
    "finish",
    "record_heuristic",
)

IN_DOUBT = tuple(standing for standing in BranchStanding if standing is not BranchStanding.IMPOSTOR)
"""The standings by which prepared branches are counted. Impostors have a metric of their own, so that forged
names do not count as in doubt."""


class Metrics:
    """All metrics of a process. One object serves any number of coordinators; a registry accepts only one.

    ``registry`` is prometheus_client's global registry by default. The application exposes it:
    ``prometheus_client.start_http_server(9187)``, or a route of its web framework.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        to = REGISTRY if registry is None else registry
        self._of_transactions(to)
        self._of_recovery(to)
        self._of_relays(to)
        to.register(_Restarts())

    def _of_transactions(self, to: CollectorRegistry) -> None:
        self._transactions = Counter(
            "undoubt_transactions", "Transactions that ended.", ["protocol", "outcome"], registry=to
        )
        self._phases = Histogram(
            "undoubt_transaction_phase_seconds",
            "Time that transactions spent in a phase.",
            ["protocol", "phase"],
            buckets=SECONDS,
            registry=to,
        )
        self._ledger = Histogram(
            "undoubt_ledger_request_seconds",
            "Time until the ledger answered, or the request failed.",
            ["request"],
            buckets=SECONDS,
            registry=to,
        )
        self._ledger_failures = Counter(
            "undoubt_ledger_request_failures",
            "Requests that the ledger did not answer, or refused.",
            ["request"],
            registry=to,
        )
        self._heuristics = Counter(
            "undoubt_heuristics",
            "Branches that did, or may have done, something else than was decided.",
            ["participant", "kind"],
            registry=to,
        )

    def _of_recovery(self, to: CollectorRegistry) -> None:
        self._in_doubt = Gauge(
            "undoubt_in_doubt_branches",
            "Prepared branches at the last pass of recovery, by what the ledger says about them.",
            ["participant", "standing"],
            registry=to,
        )
        self._impostors = Gauge(
            "undoubt_impostor_branches",
            "Prepared transactions at the last pass under names of this ledger that are not its branches.",
            ["participant"],
            registry=to,
        )
        self._ownerless = Gauge(
            "undoubt_ownerless_branches",
            "Branches at the last pass whose role was dropped: only a superuser can finish them.",
            ["participant"],
            registry=to,
        )
        self._oldest = Gauge(
            "undoubt_in_doubt_oldest_age_seconds",
            "Age of the oldest prepared branch of this ledger, 0 if there is none.",
            ["participant"],
            registry=to,
        )
        self._last_pass = Gauge(
            "undoubt_recovery_last_pass_timestamp_seconds",
            "When recovery last completed a pass over the participant, in seconds since 1970.",
            ["participant"],
            registry=to,
        )
        self._passes = Counter(
            "undoubt_recovery_passes",
            "Passes of recovery over the participant, done or failed.",
            ["participant", "result"],
            registry=to,
        )
        self._actions = Counter(
            "undoubt_recovery_actions",
            "Branches that recovery has finished.",
            ["participant", "action"],
            registry=to,
        )
        self._deadlocks = Counter(
            "undoubt_deadlocks", "Deadlocks across databases that were ended.", registry=to
        )

    def _of_relays(self, to: CollectorRegistry) -> None:
        self._deliveries = Counter(
            "undoubt_relay_deliveries",
            "Deliveries of messages of the outbox, acknowledged or failed.",
            ["participant", "topic", "result"],
            registry=to,
        )
        self._delivery_seconds = Histogram(
            "undoubt_relay_delivery_seconds",
            "Time until a delivery was acknowledged.",
            ["participant", "topic"],
            buckets=SECONDS,
            registry=to,
        )
        self._outbox_messages = Gauge(
            "undoubt_relay_outbox_messages",
            "Messages in the outbox that a relay delivers.",
            ["participant"],
            registry=to,
        )
        self._outbox_oldest = Gauge(
            "undoubt_relay_outbox_oldest_age_seconds",
            "Age of the oldest message in the outbox, 0 if there is none.",
            ["participant"],
            registry=to,
        )
        self._blocked = Gauge(
            "undoubt_relay_blocked_keys",
            "Keys, and messages without a key, whose last delivery has failed.",
            ["participant"],
            registry=to,
        )
        self._outbox_failures = Counter(
            "undoubt_relay_outbox_failures",
            "Calls that the database of the outbox did not answer, or refused.",
            ["participant"],
            registry=to,
        )

    def relay(self, participant: str) -> OutboxMetrics:
        """The metrics of a relay of that participant, for ``undoubt.relay.Relay(…, metrics=…)``."""
        return OutboxMetrics(self, participant)

    # coordinator.meter.Meter

    def phase(self, protocol: Protocol, phase: str, seconds: float) -> None:
        self._phases.labels(PROTOCOL_NAMES[protocol], phase).observe(seconds)

    def ended(self, protocol: Protocol, outcome: str, heuristics: Mapping[Gid, Settled]) -> None:
        self._transactions.labels(PROTOCOL_NAMES[protocol], outcome).inc()
        for gid, kind in heuristics.items():
            self._heuristics.labels(gid.participant, str(kind)).inc()

    # recovery.meter.Meter

    def passed(self, participant: str, passed: Passed) -> None:
        for line in passed.lines:
            if line.result == "done" and line.action == "heuristic":
                self._heuristics.labels(participant, line.why).inc()
            elif line.result == "done":
                self._actions.labels(participant, line.action).inc()
        self._passes.labels(participant, "done" if passed.error is None else "failed").inc()
        if passed.error is not None:
            return  # the gauges keep the state of the last complete pass, and its ages grow
        self._last_pass.labels(participant).set(time.time())
        listed = Count(line.standing for line in passed.lines if line.standing is not None)
        for standing in IN_DOUBT:
            self._in_doubt.labels(participant, str(standing)).set(listed[str(standing)])
        self._impostors.labels(participant).set(listed[str(BranchStanding.IMPOSTOR)])
        self._ownerless.labels(participant).set(passed.owner_gone)
        self._oldest.labels(participant).set_function(_aging(passed.oldest_s))

    def gone(self, participant: str) -> None:
        for standing in IN_DOUBT:
            _remove(self._in_doubt, participant, str(standing))
        _remove(self._impostors, participant)
        _remove(self._ownerless, participant)
        _remove(self._oldest, participant)
        _remove(self._last_pass, participant)

    def deadlocks(self, count: int) -> None:
        self._deadlocks.inc(count)

    def timed(self, ledger: Ledger) -> Ledger:
        """A ledger that makes the calls of ``ledger`` and times them."""
        return cast("Ledger", TimedLedger(ledger, self._answered))

    def _answered(self, request: str, seconds: float, failed: bool) -> None:
        self._ledger.labels(request).observe(seconds)
        if failed:
            self._ledger_failures.labels(request).inc()


class OutboxMetrics:
    """The metrics of one relay: :class:`undoubt.relay.meter.RelayMeter`."""

    def __init__(self, metrics: Metrics, participant: str) -> None:
        self._of = metrics
        self._participant = participant

    def delivered(self, topic: str, seconds: float) -> None:
        self._of._deliveries.labels(self._participant, topic, "acknowledged").inc()
        self._of._delivery_seconds.labels(self._participant, topic).observe(seconds)

    def failed(self, topic: str) -> None:
        self._of._deliveries.labels(self._participant, topic, "failed").inc()

    def outbox(self, backlog: Backlog, *, blocked: int) -> None:
        self._of._outbox_messages.labels(self._participant).set(backlog.messages)
        self._of._outbox_oldest.labels(self._participant).set_function(_aging(backlog.oldest_s))
        self._of._blocked.labels(self._participant).set(blocked)

    def outbox_failed(self) -> None:
        self._of._outbox_failures.labels(self._participant).inc()


class _Restarts:
    """A collector of the restarts of background tasks, which are counted for the whole process."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "undoubt_task_restarts",
            "Background tasks that failed with an unexpected exception and were restarted.",
            labels=["task"],
        )
        for task, count in sorted(supervision.restarts.items()):
            family.add_metric([task], count)
        yield family


def _remove(gauge: Gauge, *labels: str) -> None:
    with contextlib.suppress(KeyError):  # the label does not exist: some versions raise then
        gauge.remove(*labels)


def _aging(seconds: float) -> Callable[[], float]:
    """A function that returns ``seconds`` plus the time since this call; 0 stays 0. The age must grow while a
    database does not answer, since its branches may still be prepared."""
    if seconds <= 0:
        return lambda: 0.0
    then = time.monotonic() - seconds
    return lambda: time.monotonic() - then


class TimedLedger:
    """A proxy of a :class:`~undoubt.coordinator.ledger.contract.Ledger` that times its calls."""

    def __init__(self, ledger: Ledger, answered: Callable[[str, float, bool], None]) -> None:
        self._ledger = ledger
        self._answered = answered
        for name in LEDGER_CALLS:
            setattr(self, name, self._timed(name, getattr(ledger, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            failed = True
            try:
                answer = await call(*args, **options)
                failed = False
            finally:
                self._answered(name, time.perf_counter() - began, failed)
            return answer

        return timed
