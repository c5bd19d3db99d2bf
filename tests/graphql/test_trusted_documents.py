"""Documents by id: Apollo's persisted queries fall back to the text, and an operator's list is executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from market.graphql.app import build
from market.graphql.config import Config, GatewayHttp, TrustedDocuments
from market.kit.config import HttpUpstream, Listen
from market.kit.process.lifecycle import Process
from tests.graphql.graphql_gateway import Gateway, running_gateway
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess

QUERY = "query Page($limit: Int) { products(limit: $limit) { limit } }"
MUTATION = 'mutation Delete { deleteProduct(id: "x") }'
OTHER = "{ products(limit: 2) { limit } }"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def persisted(text: str) -> dict[str, Any]:
    """Return the extensions that Apollo Client's persisted query link sends."""
    return {"persistedQuery": {"version": 1, "sha256Hash": sha256(text)}}


BY_ID = {sha256(text): text for text in (QUERY, MUTATION)}
MANIFEST = {
    "format": "apollo-persisted-query-manifest",
    "version": 1,
    "operations": [
        {"id": sha256(QUERY), "name": "Page", "type": "query", "body": QUERY},
        {"id": sha256(MUTATION), "name": "Delete", "type": "mutation", "body": MUTATION},
    ],
}


@pytest.fixture(params=["by id", "manifest"])
async def trusting(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with two trusted documents that also executes others."""
    file = tmp_path / "documents.json"
    file.write_text(json.dumps(BY_ID if request.param == "by id" else MANIFEST))
    async with running_gateway(trusted_documents=TrustedDocuments(file=str(file))) as gateway:
        yield gateway


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway that executes two trusted documents only."""
    file = tmp_path / "documents.json"
    file.write_text(json.dumps(BY_ID))
    async with running_gateway(trusted_documents=TrustedDocuments(file=str(file), only=True)) as gateway:
        yield gateway


@pytest.mark.parametrize(("accept", "status"), [("application/json", 200), ("application/graphql-response+json", 400)])
async def test_apollos_persisted_query_link_gets_the_error_that_makes_it_send_the_text(
    gateway: Gateway, accept: str, status: int
) -> None:
    headers = {"accept": accept}
    call = {"operationName": "Page", "variables": {"limit": 1}, "extensions": persisted(QUERY)}
    expected = {
        "errors": [{"message": "PersistedQueryNotSupported", "extensions": {"code": "PERSISTED_QUERY_NOT_SUPPORTED"}}]
    }
    response = await gateway.http.post("/graphql", json=call, headers=headers)
    assert (response.status_code, response.json()) == (status, expected)
    parameters = {"operationName": "Page", "variables": '{"limit":1}', "extensions": json.dumps(persisted(QUERY))}
    response = await gateway.http.get("/graphql", params=parameters, headers=headers)
    assert (response.status_code, response.json()) == (status, expected)
    # Then it sends the text, with or without the hash.
    result = await gateway.run(QUERY, {"limit": 1}, extensions=persisted(QUERY))
    assert result == {"data": {"products": {"limit": 1}}}


@pytest.mark.parametrize(
    "more",
    [
        {"extensions": persisted(QUERY)},
        {"documentId": sha256(QUERY)},
        {"documentId": f"sha256:{sha256(QUERY)}"},
    ],
)
async def test_a_trusted_document_is_executed_by_its_id(trusting: Gateway, more: dict[str, Any]) -> None:
    call = {"variables": {"limit": 1}, **more}
    for _ in range(2):
        response = await trusting.http.post("/graphql", json=call)
        assert response.json() == {"data": {"products": {"limit": 1}}}
    parameters = {k: v if isinstance(v, str) else json.dumps(v) for k, v in call.items()}
    response = await trusting.http.get("/graphql", params=parameters)
    assert response.json() == {"data": {"products": {"limit": 1}}}


async def test_a_trusted_mutation_by_get_is_405(trusting: Gateway) -> None:
    response = await trusting.http.get("/graphql", params={"documentId": sha256(MUTATION)})
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_with_trusted_documents_others_are_executed_too_unless_forbidden(
    trusting: Gateway, strict: Gateway
) -> None:
    assert await trusting.run(OTHER) == {"data": {"products": {"limit": 2}}}
    result = (await trusting.http.post("/graphql", json={"extensions": persisted(OTHER)})).json()
    assert result["errors"][0]["extensions"]["code"] == "PERSISTED_QUERY_NOT_SUPPORTED"
    strict.products.calls.clear()
    result = await strict.run(OTHER)
    assert "data" not in result
    assert result["errors"][0]["extensions"]["code"] == "QUERY_NOT_IN_SAFELIST"
    for more in ({"extensions": persisted(OTHER)}, {"documentId": sha256(OTHER)}):
        response = await strict.http.post("/graphql", json=more)
        assert response.status_code == 400
        assert response.json()["errors"][0]["extensions"]["code"] == "PERSISTED_QUERY_NOT_IN_LIST"
    assert not strict.products.calls
    # By id, or by its very text.
    assert await strict.run(QUERY, {"limit": 1}) == {"data": {"products": {"limit": 1}}}
    response = await strict.http.post("/graphql", json={"documentId": sha256(QUERY), "variables": {"limit": 1}})
    assert response.json() == {"data": {"products": {"limit": 1}}}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": None},
        {"extensions": {}},
        {"extensions": {"persistedQuery": 5}},
        {"documentId": 7},
        {"documentId": ""},
        {"extensions": {"persistedQuery": {"sha256Hash": [1]}}},
    ],
)
async def test_a_request_with_neither_a_query_nor_an_id_is_malformed(gateway: Gateway, body: dict[str, Any]) -> None:
    response = await gateway.http.post("/graphql", json=body, headers={"accept": "application/json"})
    assert (response.status_code, response.json()["errors"][0]["message"]) == (400, "query: is missing")


BAD_FILES = {
    "not JSON": ("{", "must be a JSON object of documents by id, or an Apollo persisted query manifest"),
    "a list": ("[]", "must be a JSON object of documents by id, or an Apollo persisted query manifest"),
    "no text": ('{"a": 7}', "must be a JSON object of documents by id, or an Apollo persisted query manifest"),
    "not GraphQL": ('{"a": "{"}', "document a: Syntax Error: Expected Name, found <EOF>."),
    "invalid": ('{"a": "{ nothing }"}', "document a: Cannot query field 'nothing' on type 'Query'."),
    "invalid in one operation": (
        json.dumps({"a": "query A { products { total } } query B { nothing }"}),
        "document a: Cannot query field 'nothing' on type 'Query'.",
    ),
    "beyond a limit": (
        json.dumps({"a": "{ products { " + " ".join(f"a{i}: total" for i in range(51)) + " } }"}),
        "document a: query: must have at most 50 aliases, got 51",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
async def test_a_list_that_cannot_be_executed_ends_the_start_with_a_reason(tmp_path: Path, name: str) -> None:
    file = tmp_path / "documents.json"
    text, reason = BAD_FILES[name]
    file.write_text(text)
    nowhere = HttpUpstream(url="http://127.0.0.1:1")
    config = Config(
        admin=Listen(port=1),
        http=GatewayHttp(port=free_port()),
        products=nowhere,
        orders=nowhere,
        trusted_documents=TrustedDocuments(file=str(file)),
    )
    with pytest.raises(OSError, match="trusted_documents") as e:
        async with build(config, Process()):
            pass
    assert str(e.value) == f"trusted_documents.file: {file}: {reason}"


def test_the_process_logs_why_it_cannot_serve(tmp_path: Path) -> None:
    config = {
        "admin": {"port": free_port()},
        "http": {"port": free_port()},
        "products": {"url": "http://127.0.0.1:1"},
        "orders": {"url": "http://127.0.0.1:1"},
        "trusted_documents": {"file": str(tmp_path / "absent.json")},
    }
    gateway = ServiceProcess("graphql", config, tmp_path)
    gateway.start()
    assert gateway.wait_exited() == 1
    assert "absent.json: cannot be read: No such file or directory" in gateway.log
    assert "Traceback" not in gateway.log


async def test_several_operations_in_one_trusted_document_are_selected_by_name(tmp_path: Path) -> None:
    file = tmp_path / "documents.json"
    file.write_text(
        json.dumps({"a": "query A { products(limit: 1) { limit } } query B { products(limit: 2) { limit } }"})
    )
    async with running_gateway(trusted_documents=TrustedDocuments(file=str(file), only=True)) as gateway:
        for name, limit in (("A", 1), ("B", 2)):
            response = await gateway.http.post("/graphql", json={"documentId": "a", "operationName": name})
            assert response.json() == {"data": {"products": {"limit": limit}}}
