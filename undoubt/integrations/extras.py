"""Says how to install a library that an integration needs and does not find."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """For the imports of an integration. Raises ``ModuleNotFoundError``, which names the ``extra`` of this
    distribution, if a module that is imported in the block is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}: undoubt.integrations needs it here; run: pip install 'undoubt[{extra}]'",
            name=error.name,
        ) from error
