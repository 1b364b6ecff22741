"""Two clients of etcd with the same transactions: its JSON gateway over httpx, as the ledger in etcd has it,
and gRPC over grpcio, with requests encoded by hand.

Both send to the leader of the same etcd of three members, in turns of about a second, one transaction after
the other, as the ledger does: each records so many decisions as it would (group commit). The processor time
is that of this process alone: what the client costs an application.

    python -m benchmarks.etcd_client --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import statistics
import tempfile
import time
import typing
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from benchmarks import etcd as peer
from benchmarks.etcd import numbered, written
from benchmarks.machine import machine
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.client import EtcdClient
from undoubt.coordinator.settings import LedgerSettings
from undoubt.serve.loop import fastest_loop

TURN_S = 1.0
VALUE = b"v" * 350
"""As large as a decision on two branches."""
RESULTS = ("EQUAL", "GREATER", "LESS", "NOT_EQUAL")
TARGETS = ("VERSION", "CREATE", "MOD", "VALUE", "LEASE")

Send = Callable[[messages.EtcdTransaction], Awaitable[bool]]


def transaction(first: int, count: int) -> messages.EtcdTransaction:
    """Of ``count`` decisions, with what the ledger compares and writes."""
    return messages.EtcdTransaction(
        [messages.present(peer.SESSION)],
        [messages.nested(_decision(b"%016x" % seq)) for seq in range(first, first + count)],
    )


def _decision(seq: bytes) -> messages.EtcdTransaction:
    compare = [
        messages.absent(b"undoubt/decision/1/" + seq),
        messages.above(peer.SESSION, b"0"),
        messages.absent(b"undoubt/floor/1"),
    ]
    kinds = (b"undoubt/decision/1/", b"undoubt/unfinished/1/", b"undoubt/decided/1/")
    return messages.EtcdTransaction(
        compare, [messages.put(kind + seq, VALUE if kind is kinds[0] else b"") for kind in kinds]
    )


def encoded(sent: messages.EtcdTransaction) -> bytes:
    """A ``TxnRequest`` of what :func:`transaction` uses."""
    return b"".join(
        [
            *(written(1, _compare(each)) for each in sent.compare),
            *(written(2, _operation(each)) for each in sent.success),
        ]
    )


def _compare(sent: messages.Compare) -> bytes:
    head = numbered(1, RESULTS.index(sent.result)) + numbered(2, TARGETS.index(sent.target))
    if sent.value is not None:
        return head + written(3, sent.key) + written(7, sent.value)
    return head + written(3, sent.key) + numbered(5, sent.create_revision or 0)


def _operation(sent: messages.EtcdOperation) -> bytes:
    if sent.request_txn is not None:
        return written(4, encoded(sent.request_txn))
    if sent.request_put is None:
        raise ValueError(f"not in these transactions: {sent}")
    return written(2, written(1, sent.request_put.key) + written(2, sent.request_put.value))


class Turns:
    """The turns of one client, by the number of decisions in a transaction."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.waits_us: dict[int, list[float]] = defaultdict(list)
        self.cpu_us: dict[int, list[float]] = defaultdict(list)

    async def take(self, count: int, numbers: typing.Iterator[int]) -> None:
        waits, begun_cpu = [], time.process_time()
        end = time.perf_counter() + TURN_S
        while (begun := time.perf_counter()) < end:
            if not await self._send(transaction(next(numbers) * 1_000, count)):
                raise RuntimeError("etcd has refused a transaction that it should carry out")
            waits.append((time.perf_counter() - begun) * 1e6)
        self.cpu_us[count].append((time.process_time() - begun_cpu) * 1e6 / len(waits))
        self.waits_us[count] += waits


async def run(seconds: float, counts: Sequence[int]) -> None:
    """Prints the table."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-etcd-client-")))
        served = await stack.enter_async_context(peer.etcd(folder))
        client = EtcdClient(LedgerSettings(url=f"etcd://{served.address}", request_timeout_s=60.0))
        stack.push_async_callback(client.close)
        transact = served.channel.unary_unary("/etcdserverpb.KV/Txn")

        async def by_json(sent: messages.EtcdTransaction) -> bool:
            nested = (each.response_txn for each in (await client.transact(sent)).responses)
            return all(each is not None and each.succeeded for each in nested)

        async def by_grpc(sent: messages.EtcdTransaction) -> bool:
            return peer.succeeded(await transact(encoded(sent)))

        turns = {"JSON gateway": Turns(by_json), "gRPC": Turns(by_grpc)}
        numbers = itertools.count(1)
        for count in counts:
            for number in range(max(2, round(seconds / len(turns) / TURN_S))):
                order = list(turns.values())
                for one in order if number % 2 else reversed(order):
                    await one.take(count, numbers)
        _tell(turns, counts)


def _tell(turns: dict[str, Turns], counts: Sequence[int]) -> None:
    print("| decisions together |", " | ".join(f"{name}: p50 µs | CPU µs a decision" for name in turns), "|")
    print("|---" * (1 + 2 * len(turns)) + "|")
    for count in counts:
        cells = []
        for one in turns.values():
            wait_us, cpu_us = (statistics.median(found[count]) for found in (one.waits_us, one.cpu_us))
            cells.append(f"{wait_us:,.0f} | {cpu_us / count:,.0f}")
        print(f"| {count} |", " | ".join(cells), "|")
    print(f"\n{machine()}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of decisions")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 16, 64], metavar="N")
    options = parser.parse_args()
    if why := peer.missing():
        parser.error(why)
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(run(options.seconds, options.counts))


if __name__ == "__main__":
    main()
