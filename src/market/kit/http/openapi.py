"""OpenAPI 3.1 documents, from a list of operations and the schemas that msgspec derives from structs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "description": "the fields or parameters that are wrong, and why",
            "items": {
                "type": "object",
                "required": ["field", "reason"],
                "properties": {"field": {"type": "string"}, "reason": {"type": "string"}},
            },
        },
    },
}


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    responses: description and struct (or None) by status; statuses from 400 on are problem documents.
    parameters: parameter objects, as `parameter` returns them. body: the request's struct, or None.
    headers: for each status, the names of response headers and their descriptions.
    """

    method: str
    path: str
    operation_id: str
    summary: str
    responses: dict[int, tuple[str, Any]]
    parameters: list[dict[str, Any]] = field(default_factory=list)
    body: Any = None
    headers: dict[int, dict[str, str]] = field(default_factory=dict)


def parameter(
    name: str, location: str, description: str, schema: dict[str, Any], *, required: bool = False
) -> dict[str, Any]:
    """Return a parameter object. `location` is path, query or header; a path parameter is always required."""
    return {
        "name": name,
        "in": location,
        "description": description,
        "required": required or location == "path",
        "schema": schema,
    }


def document(
    title: str, description: str, operations: list[Operation], problem_members: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the document, as JSON values.

    problem_members: the schemas of the extension members (RFC 9457) of the service's problems, by name.
    """
    structs = [s for o in operations for s in [o.body, *(s for _, s in o.responses.values())] if s is not None]
    refs, components = msgspec.json.schema_components(
        dict.fromkeys(structs), ref_template="#/components/schemas/{name}"
    )
    by_struct = dict(zip(dict.fromkeys(structs), refs, strict=True))
    paths: dict[str, Any] = {}
    for o in operations:
        responses: dict[str, Any] = {}
        for status, (meaning, struct) in o.responses.items():
            response: dict[str, Any] = {"description": meaning}
            if status >= 400:
                response["content"] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
            elif struct is not None:
                response["content"] = {"application/json": {"schema": by_struct[struct]}}
            if status in o.headers:
                response["headers"] = {
                    n: {"description": d, "schema": {"type": "string"}} for n, d in o.headers[status].items()
                }
            responses[str(status)] = response
        entry: dict[str, Any] = {"operationId": o.operation_id, "summary": o.summary, "responses": responses}
        if o.parameters:
            entry["parameters"] = o.parameters
        if o.body is not None:
            entry["requestBody"] = {"required": True, "content": {"application/json": {"schema": by_struct[o.body]}}}
        paths.setdefault(o.path, {})[o.method.lower()] = entry
    problem = PROBLEM_SCHEMA | {"properties": PROBLEM_SCHEMA["properties"] | (problem_members or {})}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1", "description": description},
        "paths": paths,
        "components": {
            "schemas": {**{name: _typed(schema) for name, schema in components.items()}, "Problem": problem}
        },
    }


def _typed(schema: Any) -> Any:
    """Return the schema with `type: string` in each enum of strings: msgspec omits it, and generators need it."""
    if isinstance(schema, list):
        return [_typed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    typed = {name: _typed(value) for name, value in schema.items()}
    values = typed.get("enum")
    if isinstance(values, list) and "type" not in typed and all(isinstance(value, str) for value in values):
        typed["type"] = "string"
    return typed
