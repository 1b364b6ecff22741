"""Finds the operation for a method and a path.

An id is one segment of a path: it has no slash, also none that was written as ``%2F``, since the server has
decoded the path before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from undoubt.serve.sidecar.operations import Operation
from undoubt.serve.sidecar.problems import RequestRefused


class Routes:
    """Those of ``operations``. HEAD is served as GET; the server leaves out the body."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._shapes: dict[int, list[tuple[tuple[str, ...], dict[str, Operation]]]] = {}
        for operation in operations:
            parts = tuple(operation.path.split("/"))
            shapes = self._shapes.setdefault(len(parts), [])
            methods = next((methods for known, methods in shapes if known == parts), None)
            if methods is None:
                methods = {}
                shapes.append((parts, methods))
            methods[operation.method] = operation
            if operation.method == "GET":
                methods["HEAD"] = operation

    def find(self, method: str, path: str) -> tuple[Operation, dict[str, str]]:
        """The operation, and the parts of the path that have names in it. Raises :class:`RequestRefused`."""
        parts = path.split("/")
        for shape, methods in self._shapes.get(len(parts), ()):
            named = _named(shape, parts)
            if named is None:
                continue
            if method not in methods:
                raise RequestRefused(405, "NoSuchMethod", headers=_allowing(methods))
            return methods[method], named
        raise RequestRefused(404, "NoSuchPath")


def _named(shape: tuple[str, ...], parts: list[str]) -> dict[str, str] | None:
    """The named parts; None if the path has another shape."""
    named = {}
    for expected, part in zip(shape, parts, strict=True):
        if expected.startswith("{") and part:
            named[expected[1:-1]] = part
        elif expected != part:
            return None
    return named


def _allowing(methods: Mapping[str, Operation]) -> dict[str, str]:
    return {"Allow": ", ".join(sorted(methods))}
