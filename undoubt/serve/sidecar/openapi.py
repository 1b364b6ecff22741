"""Makes the description of the API (OpenAPI 3.1) from the table of operations and their types."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

import undoubt
from undoubt.serve.sidecar.operations import Operation
from undoubt.serve.sidecar.problems import MEDIA_TYPE
from undoubt.serve.sidecar.types import Problem

_REF = "#/components/schemas/{name}"
_PLACE = re.compile(r"\{(\w+)\}")
_PLACES: dict[str, dict[str, Any]] = {
    "id": {"type": "string", "description": "a transaction's id"},
    "token": {"type": "integer", "minimum": 1, "maximum": 1 << 62, "description": "a lock's token"},
    "n": {"type": "integer", "minimum": 1, "maximum": 9999, "description": "a branch's number"},
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "a repeated request with the same key gets the first answer",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!#-~]+$"},
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "wait=<seconds>: answer once the outcome is known or the lock granted, or after this time",
    "schema": {"type": "string", "pattern": "^wait=[0-9]{1,4}$"},
}
_JOIN = {
    "name": "Undoubt-Transaction",
    "in": "header",
    "required": False,
    "description": "the `join` of a transaction that another client has begun, here or at another sidecar",
    "schema": {"type": "string", "maxLength": 8192},
}


def describe(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document."""
    kinds: set[type] = {Problem}
    for operation in operations:
        kinds |= {kind for kind in (operation.takes, *operation.gives.values()) if kind is not None}
    in_order = sorted(kinds, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(in_order, ref_template=_REF)
    named: dict[type, Any] = dict(zip(in_order, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, named)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "undoubt sidecar",
            "version": undoubt.__version__,
            "summary": "One transaction over the databases of several services.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, schemas: dict[type, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _PLACES[name]}
        for name in _PLACE.findall(operation.path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in operation.query.items()
    ]
    if operation.keyed:
        parameters.append(_KEY)
    if operation.waits:
        parameters.append(_PREFER)
    if operation.joins:
        parameters.append(_JOIN)
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            **{str(status): _answer(status, kind, schemas) for status, kind in operation.gives.items()},
            "default": {
                "description": "a problem",
                "content": {MEDIA_TYPE: {"schema": schemas[Problem]}},
            },
        },
        "security": [{"token": []}] if operation.guarded else [],
    }
    if operation.takes is not None:
        described["requestBody"] = {
            "required": not operation.may_be_empty,
            "content": {"application/json": {"schema": schemas[operation.takes]}},
        }
    return described


def _answer(status: int, kind: type | None, schemas: dict[type, Any]) -> dict[str, Any]:
    words = {200: "done", 201: "made", 202: "not known yet", 503: "not now"}
    if kind is None:
        return {"description": words[status]}
    return {
        "description": words[status],
        "content": {"application/json": {"schema": schemas[kind]}},
    }
