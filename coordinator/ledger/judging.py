"""What a caller gives is judged before it is queued: as the peer would judge it, and alone.

A message that the peer cannot read would cut the connection that all callers of this process share, and be
sent again on the next one. So a call is encoded, and read back with the peer's own types, when it is asked:
what is wrong is refused there, to whoever asked, and nothing of it is ever sent.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from undoubt.coordinator.ledger import calls
from undoubt.coordinator.rpc.envelope import encode
from undoubt.coordinator.wire.frames import FRAME_BYTES_MAX
from undoubt.participants.errors import UsageError

CALL_BYTES_MAX = FRAME_BYTES_MAX // 2
"""A frame has room for this and for what goes around it."""


def judged(
    call: msgspec.Struct, decode: Callable[[bytes], msgspec.Struct] = calls.decode_call
) -> msgspec.Raw:
    """``call`` as it goes over the wire. Raises ``UsageError`` if ``decode``, which is the peer's, would not
    take it: an id that is not a ``TxId``, a number that no peer can hold, text that is no Unicode."""
    try:
        payload = encode(call)
        decode(payload)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{_name(call)} was given what no ledger takes: {error}") from error
    if len(payload) > CALL_BYTES_MAX:
        raise UsageError(f"{_name(call)} of {len(payload)} bytes; {CALL_BYTES_MAX} are the most")
    return msgspec.Raw(payload)


def _name(call: msgspec.Struct) -> str:
    return type(call).__name__
