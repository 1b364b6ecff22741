"""Finds unused code of the product with vulture (https://github.com/jendrikseipp/vulture)."""

from __future__ import annotations

from vulture import Vulture

from tests.house.tree import ROOMS, ROOT, modules

CONFIDENCE_MIN = 60
"""The least confidence in percent: that of functions, classes, attributes and variables (vulture's README,
"Types of unused code")."""

HOOKS = {
    # asyncpg reads these attributes of a connection (asyncpg/connection.py, asyncpg/pool.py).
    "_get_unique_id",
    "_pool_release_ctr",
    "_stmt_cache_enabled",
    # psycopg reads these attributes of a connection (psycopg/_connection_base.py).
    "_autocommit",
    "cursor_factory",
    "prepare_threshold",
    "server_cursor_factory",
    # SQLAlchemy reads these attributes, and calls a listener that a decorator registers.
    "_after_attach",
    "_after_begin",
    "is_active",
    "sync_session_class",
    # click calls methods of a group, and finds commands by their decorator or by their name in a table.
    "completion",
    "demo",
    "format_commands",
    # The benchmark imports its contenders by name.
    "naive",
    "own_driver",
    "sqlite",
    "sqlite_sync",
    "through_sidecar",
    "two_phase_sync",
    # The standard library reads this attribute of a context (ssl.SSLContext.num_tickets).
    "num_tickets",
    # Fields of what ``-o json``, or the sidecar, shows as it is.
    "begin_statements",
    "evidence_xid",
    "lacks_entry",
    "prepare_statements",
    "result_base64",
    "was_prepared",
    # Fields of requests that etcd reads.
    "count_only",
    "create_revision",
    "request_delete_range",
    "sort_order",
    "sort_target",
    # uvicorn calls this method of its protocol (uvicorn/protocols/http/httptools_impl.py).
    "send_400_response",
    # uvicorn reads these attributes of its server.
    "lifespan",
    "should_exit",
    # Celery reads these attributes of a task's class (celery/app/task.py, celery/worker/request.py).
    "abstract",
    "acks_late",
    "reject_on_worker_lost",
    # Django, and the standard library's ContextDecorator, call these.
    "_recreate_cm",
    "process_exception",
    # Package transaction calls the methods of a data manager, and reads its manager.
    "tpc_abort",
    "tpc_finish",
    "tpc_vote",
    "transaction_manager",
    # pytest calls these: a hook, and fixtures by their names.
    "pytest_addoption",
    "undoubt_config",
    "undoubt_coordinator",
    # Members of a protocol that only annotations refer to.
    "__getitem__",
}
"""Names that only a library or a table of names uses."""


def dead() -> list[str]:
    """``path:line: kind name`` for each name of the product that neither the product nor its tests use."""
    seen = Vulture(ignore_names=sorted(HOOKS))
    seen.scavenge([str(path) for path in modules(*ROOMS, "migrations", "tests", "examples")])
    rooms = [ROOT / room for room in ROOMS]
    return [
        f"{item.filename.relative_to(ROOT)}:{item.first_lineno}: {item.typ} {item.name}"
        for item in seen.get_unused_code(min_confidence=CONFIDENCE_MIN)
        if any(item.filename.is_relative_to(room) for room in rooms)
    ]
