"""OpenAPI 3.1 documents, from a list of operations and the schemas that msgspec derives from structs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from market.kit.auth.identity import Role
from market.kit.auth.permissions import Access, Permission

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

    responses: for each status, the description and the body's struct, or None if there is no body. For status 400 and
        above, the body is a problem document.
    parameters: parameter objects, as `parameter` returns them.
    body: the struct of the request's body, or None.
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
    title: str,
    description: str,
    server: str,
    operations: list[Operation],
    problem_members: dict[str, Any] | None = None,
    *,
    access: Mapping[str, Access] | None = None,
    issuer: str | None = None,
) -> dict[str, Any]:
    """Return the document, as JSON values.

    server: the service's URL on the local stack.
    problem_members: the schemas of the extension members (RFC 9457) of the service's problems, by name.
    access: who may call each operation, by method and path. From it, the operations get `security`, the responses 401
        and 403, and a sentence about the roles.
    issuer: the URL of the OpenID Connect issuer, if it is known; tools then offer to sign in there.
    """
    structs = [s for o in operations for s in [o.body, *(s for _, s in o.responses.values())] if s is not None]
    refs, components = msgspec.json.schema_components(
        dict.fromkeys(structs), ref_template="#/components/schemas/{name}"
    )
    by_struct = dict(zip(dict.fromkeys(structs), refs, strict=True))
    schemes = _security_schemes(issuer) if access is not None else {}
    paths: dict[str, Any] = {}
    for o in operations:
        responses: dict[str, Any] = {}
        allowed = access[f"{o.method} {o.path}"] if access is not None else None
        documented = o.responses if allowed is None else _with_refusals(o.responses, allowed)
        headers = o.headers if allowed is None else o.headers | _CHALLENGES
        for status, (text, struct) in documented.items():
            response: dict[str, Any] = {"description": text}
            if status >= 400:
                response["content"] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
            elif struct is not None:
                response["content"] = {"application/json": {"schema": by_struct[struct]}}
            if status in headers:
                response["headers"] = {
                    n: {"description": d, "schema": {"type": "string"}} for n, d in headers[status].items()
                }
            responses[str(status)] = response
        entry: dict[str, Any] = {"operationId": o.operation_id, "summary": o.summary, "responses": responses}
        if allowed is not None:
            entry["description"] = _roles_in_words(allowed)
            # `{}` means that no token is needed. A caller may still send one.
            entry["security"] = [{}] if allowed.anonymous is not Permission.NO else []
            entry["security"] += [{name: []} for name in schemes]
        if o.parameters:
            entry["parameters"] = o.parameters
        if o.body is not None:
            entry["requestBody"] = {"required": True, "content": {"application/json": {"schema": by_struct[o.body]}}}
        paths.setdefault(o.path, {})[o.method.lower()] = entry
    components_of_security = {"securitySchemes": schemes} if schemes else {}
    problem = PROBLEM_SCHEMA | {"properties": PROBLEM_SCHEMA["properties"] | (problem_members or {})}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1", "description": description},
        "servers": [{"url": server, "description": "the local stack, as `market up` starts it"}],
        "paths": paths,
        "components": {
            "schemas": {**{name: _portable(schema) for name, schema in components.items()}, "Problem": problem},
            **components_of_security,
        },
    }


_CHALLENGES = {401: {"WWW-Authenticate": "Which rule the token breaks (RFC 6750)."}}


def _security_schemes(issuer: str | None) -> dict[str, Any]:
    """Return the security schemes by name.

    `bearer` is first, because simple clients use the first one that an operation lists.
    """
    schemes: dict[str, Any] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "An access token of the shop's issuer. Not needed where the service runs with "
            "`auth.mode: open`.",
        }
    }
    if issuer is not None:
        url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        schemes["openIdConnect"] = {"type": "openIdConnect", "openIdConnectUrl": url}
    return schemes


def _with_refusals(responses: dict[int, tuple[str, Any]], allowed: Access) -> dict[int, tuple[str, Any]]:
    """Return the responses, with 401 and 403 added. There is no 403 if every role has access to all data."""
    token_is_optional = allowed.anonymous is not Permission.NO
    text = "The token is not valid." if token_is_optional else "There is no token, or it is not valid."
    refusals: dict[int, tuple[str, Any]] = {401: (text, None)}
    if Permission.OWN in _by_role(allowed).values():
        refusals[403] = ("The caller's role does not permit this, or only for the caller's own data.", None)
    elif Permission.NO in _by_role(allowed).values():
        refusals[403] = ("The caller's role does not permit this.", None)
    return responses | {status: refusal for status, refusal in refusals.items() if status not in responses}


def _by_role(allowed: Access) -> dict[str, Permission]:
    return {role.value: getattr(allowed, role.value) for role in Role}


def _roles_in_words(allowed: Access) -> str:
    """Return "Where sign-in is required: for buyers (only their own data) and merchants."."""
    if allowed.anonymous is not Permission.NO:
        return "For everybody."
    permitted = [
        f"{role}s (only their own data)" if permission is Permission.OWN else f"{role}s"
        for role, permission in _by_role(allowed).items()
        if permission is not Permission.NO
    ]
    return f"Where sign-in is required: for {_joined(permitted) or 'nobody'}."


def _joined(words: list[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _portable(schema: Any) -> Any:
    """Return the schema in the form that client generators understand.

    - An enum of strings gets the type that msgspec omits.
    - A property's default is removed, because openapi-typescript treats a property with a default as required, even in
      requests. The description states the default.
    - The description of a nullable property is moved from one of its alternatives to the property. Otherwise generators
      lose it.
    - `format: decimal` is removed from strings, because openapi-generator's Java client maps it to a number.
    """
    if isinstance(schema, list):
        return [_portable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    portable = {name: _portable(value) for name, value in schema.items()}
    values = portable.get("enum")
    if isinstance(values, list) and "type" not in portable and all(isinstance(value, str) for value in values):
        portable["type"] = "string"
    if isinstance(portable.get("properties"), dict):
        for member in portable["properties"].values():
            member.pop("default", None)
    if {"type": "null"} in portable.get("anyOf", []):
        for alternative in portable["anyOf"]:
            if "description" in alternative:
                portable["description"] = alternative.pop("description")
    if portable.get("format") == "decimal":
        del portable["format"]
    if isinstance(portable.get("description"), str):
        portable["description"] = inspect.cleandoc(portable["description"])
    return portable
