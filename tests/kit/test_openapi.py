"""What OpenAPI documents say about sign-in; the services' tests compare the rest with the running service."""

from __future__ import annotations

from typing import Any

import pytest

from market.kit.auth.permissions import Access, Permission
from market.kit.http.openapi import Operation, document

NO, OWN, YES = Permission.NO, Permission.OWN, Permission.YES
ORDERS = Access(anonymous=NO, buyer=OWN, merchant=YES, operator=YES, service=NO)
PRODUCTS = Access(anonymous=YES, buyer=YES, merchant=YES, operator=YES, service=YES)


def build(access: Access | None, issuer: str | None = None) -> dict[str, Any]:
    """Return the document of a service with one operation."""
    operation = Operation("GET", "/api/thing", "getThing", "Get it.", {200: ("The thing.", None)})
    table = None if access is None else {"GET /api/thing": access}
    return document("Things", "", "http://127.0.0.1", [operation], access=table, issuer=issuer)


def test_an_operation_that_requires_sign_in_names_the_scheme_the_roles_and_the_refusals() -> None:
    built = build(ORDERS)
    operation = built["paths"]["/api/thing"]["get"]
    assert operation["security"] == [{"bearer": []}]
    assert (
        operation["description"]
        == "Where sign-in is required: for buyers (only their own data), merchants and operators."
    )
    assert sorted(operation["responses"]) == ["200", "401", "403"]
    for status in ("401", "403"):
        assert list(operation["responses"][status]["content"]) == ["application/problem+json"]
    assert list(operation["responses"]["401"]["headers"]) == ["WWW-Authenticate"]
    [scheme] = built["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")


def test_an_operation_for_everybody_accepts_a_token_and_requires_none() -> None:
    operation = build(PRODUCTS)["paths"]["/api/thing"]["get"]
    assert operation["security"] == [{}, {"bearer": []}]
    assert operation["description"] == "For everybody."
    assert sorted(operation["responses"]) == ["200", "401"]


def test_a_known_issuer_is_offered_for_sign_in() -> None:
    built = build(ORDERS, "https://id.example.com/realms/shop/")
    assert built["components"]["securitySchemes"]["openIdConnect"] == {
        "type": "openIdConnect",
        "openIdConnectUrl": "https://id.example.com/realms/shop/.well-known/openid-configuration",
    }
    assert built["paths"]["/api/thing"]["get"]["security"] == [{"bearer": []}, {"openIdConnect": []}]


def test_without_a_table_the_document_says_nothing_about_sign_in() -> None:
    built = build(None)
    assert "securitySchemes" not in built["components"]
    assert not {"security", "description"} & built["paths"]["/api/thing"]["get"].keys()


def test_an_operation_that_the_table_lacks_is_an_error() -> None:
    operation = Operation("GET", "/api/thing", "getThing", "Get it.", {200: ("The thing.", None)})
    with pytest.raises(KeyError, match="GET /api/thing"):
        document("Things", "", "http://127.0.0.1", [operation], access={})
