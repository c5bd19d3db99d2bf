"""An OpenAPI 3.1 document from a table of operations and msgspec's own schemas."""

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
    },
}


@dataclass(frozen=True)
class Operation:
    """One call. `answers` maps a status to (description, struct or None); statuses from 400 are problems."""

    method: str
    path: str
    id: str
    summary: str
    answers: dict[int, tuple[str, Any]]
    parameters: list[dict[str, Any]] = field(default_factory=list)
    body: Any = None
    # Headers of an answer, by status: name to what it says.
    headers: dict[int, dict[str, str]] = field(default_factory=dict)


def parameter(
    name: str, where: str, description: str, schema: dict[str, Any], *, required: bool = False
) -> dict[str, Any]:
    """A parameter object; `where` is path, query or header."""
    return {
        "name": name,
        "in": where,
        "description": description,
        "required": required or where == "path",
        "schema": schema,
    }


def document(title: str, description: str, operations: list[Operation]) -> dict[str, Any]:
    """The whole document, as JSON values."""
    structs = [s for o in operations for s in [o.body, *(s for _, s in o.answers.values())] if s is not None]
    refs, components = msgspec.json.schema_components(
        dict.fromkeys(structs), ref_template="#/components/schemas/{name}"
    )
    by_struct = dict(zip(dict.fromkeys(structs), refs, strict=True))
    paths: dict[str, Any] = {}
    for o in operations:
        responses: dict[str, Any] = {}
        for status, (text, struct) in o.answers.items():
            response: dict[str, Any] = {"description": text}
            if status >= 400:
                response["content"] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
            elif struct is not None:
                response["content"] = {"application/json": {"schema": by_struct[struct]}}
            if status in o.headers:
                response["headers"] = {
                    n: {"description": d, "schema": {"type": "string"}} for n, d in o.headers[status].items()
                }
            responses[str(status)] = response
        entry: dict[str, Any] = {"operationId": o.id, "summary": o.summary, "responses": responses}
        if o.parameters:
            entry["parameters"] = o.parameters
        if o.body is not None:
            entry["requestBody"] = {"required": True, "content": {"application/json": {"schema": by_struct[o.body]}}}
        paths.setdefault(o.path, {})[o.method.lower()] = entry
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1", "description": description},
        "paths": paths,
        "components": {"schemas": {**components, "Problem": PROBLEM_SCHEMA}},
    }
