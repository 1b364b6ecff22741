"""Applications of ``zope.sqlalchemy``: one session commits in a zope transaction, or none.

``zope.sqlalchemy`` commits each session of its own in ``tpc_vote``. Two sessions that have written would so
commit one after the other, and the second one may fail when the first one has committed. For each transaction
in which a session of undoubt's classes works, a data manager joins that votes before all sessions and refuses
this. A session that has written nothing is no longer in the transaction then.

This module imports neither zope nor SQLAlchemy: an application that does not use both has nothing to watch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from undoubt.participants.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy import orm

_ONE_PHASE = "~"
"""The beginning of the sort keys of data managers that commit in one phase: zope.sqlalchemy's."""


def watch_zope(session: orm.Session) -> None:
    """Have the zope transactions that ``session`` is registered for refuse a second session that writes."""
    for manager in _managers(session):
        current = manager.get()
        if str(current.status) != "Active" or any(
            isinstance(each, OneSession) for each in current._resources
        ):
            continue
        current.join(OneSession(manager))


def _managers(session: orm.Session) -> Iterator[Any]:
    """The transaction managers with which ``zope.sqlalchemy.register`` was called for ``session``."""
    library: Any = sys.modules.get("zope.sqlalchemy.datamanager")
    if library is None:
        return
    for listener in session.dispatch.after_begin:
        owner = getattr(listener, "__self__", None)
        if isinstance(owner, library.ZopeTransactionEvents):
            yield owner.transaction_manager


class OneSession:
    """A data manager that has nothing to commit, and refuses a zope transaction in which two sessions do."""

    def __init__(self, manager: Any) -> None:
        self.transaction_manager = manager

    def sortKey(self) -> str:  # noqa: N802 - a name of zope's
        return ""  # the first to vote

    def tpc_vote(self, current: Any) -> None:
        """Raises ``UsageError``."""
        left = [each for each in current._resources if commits_alone(each)]
        if len(left) > 1:
            raise UsageError(
                "several sessions or other data managers of one phase write in one transaction, and each"
                f" commits by itself ({', '.join(type(each).__name__ for each in left)}): use"
                " one sessionmaker(class_=undoubt.integrations.sqlalchemy.Session, participants={…}) with all"
                " engines"
            )

    def tpc_begin(self, current: Any) -> None: ...

    def commit(self, current: Any) -> None: ...

    def tpc_finish(self, current: Any) -> None: ...

    def tpc_abort(self, current: Any) -> None: ...

    def abort(self, current: Any) -> None: ...

    def savepoint(self) -> OneSession:
        return self

    def rollback(self) -> None:
        """Of a savepoint."""


def commits_alone(manager: Any) -> bool:
    """Whether ``manager`` commits in one phase, and has anything to commit. That of a session that has
    written nothing has given its transaction up before the votes."""
    return manager.sortKey().startswith(_ONE_PHASE) and getattr(manager, "tx", manager) is not None
