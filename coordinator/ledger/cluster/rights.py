"""Which role of a client each call needs: the call declares it, the nodes enforce it."""

from __future__ import annotations

from undoubt.coordinator.errors import NotPermitted
from undoubt.coordinator.rpc.calls import AnyCall
from undoubt.coordinator.wire import Right


def check(call: AnyCall, right: Right, holder: str) -> None:
    """Raises ``NotPermitted`` unless ``right``, which the certificate of ``holder`` gives, is enough for
    ``call``."""
    if right < call.right:
        raise NotPermitted(
            f"{type(call).__name__} needs a certificate with the role {call.right}; that of {holder}"
            f" has {right}"
        )
