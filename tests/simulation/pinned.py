"""Whatever would make two runs of a seed differ is pinned, and whatever is real is out of bounds.

For a process that does nothing but simulate: clocks, random sources and identities are replaced for good.
"""

from __future__ import annotations

import gc
import os
import random
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, NoReturn

from tests.simulation.judge import Violation
from tests.simulation.loop import pin_hash
from tests.stand_in import put
from undoubt.coordinator.wire.listener import InboundConnection
from undoubt.participants.tasks import Uncancellable

EPOCH_S = 1_750_000_000.0
"""The wall clock at the beginning of every run."""


class OutOfBounds(Violation):
    """The shipped code reached for the real world: it would not replay."""


def pin(seed: int, now: Callable[[], float]) -> None:
    """``now`` is the virtual time in seconds since the beginning."""
    gc.disable()  # finalizers would run at a moment that the seed does not choose
    rng = random.Random(f"entropy of {seed}")
    random.seed(seed)
    time.time = lambda: EPOCH_S + now()
    time.time_ns = lambda: int((EPOCH_S + now()) * 1e9)
    time.monotonic = time.perf_counter = now
    time.monotonic_ns = time.perf_counter_ns = lambda: int(now() * 1e9)
    os.urandom = random._urandom = rng.randbytes  # type: ignore[attr-defined]
    os.getpid = lambda: 4242
    secrets.token_bytes = lambda nbytes=None: rng.randbytes(nbytes or 32)
    secrets.token_hex = lambda nbytes=None: rng.randbytes(nbytes or 32).hex()
    secrets.choice = rng.choice
    put(secrets, "randbits", rng.getrandbits)
    put(secrets, "randbelow", rng.randrange)
    uuid.uuid4 = lambda: uuid.UUID(int=rng.getrandbits(128), version=4)
    socket.gethostname = lambda: "simulated"
    _forbid(time, "sleep")
    _forbid(threading.Thread, "start")
    _forbid(socket.socket, "connect")
    _forbid(socket.socket, "bind")
    pin_hash(Uncancellable)
    pin_hash(InboundConnection)


def _forbid(owner: Any, name: str) -> None:
    def refused(*_: object, **__: object) -> NoReturn:
        raise OutOfBounds(f"{getattr(owner, '__name__', owner)}.{name} was called in the simulation")

    setattr(owner, name, refused)
