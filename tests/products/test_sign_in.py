"""Products where sign-in is required: who may read and change what, with which headers, and what the audit log has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from structlog.testing import capture_logs

from market.inventory import app as inventory_app
from market.inventory.config import Config as InventoryConfig
from market.inventory.config import Grpc, InventoryAuth
from market.kit.auth.config import Auth, ServiceIdentity
from market.kit.config import Listen
from market.kit.process import logs
from market.kit.process.lifecycle import Process
from tests.support.issuer import Issuer
from tests.support.ports import free_port
from tests.support.schemathesis import check_with_schemathesis

from .conftest import LAMP, FakeInventory, RunningProducts, Start, assert_problem, postgres_config, serving
from .test_openapi import FILE

SERVICE = "system:serviceaccount:market:product-service"
# The body of a PUT has every field.
FIELDS = {**LAMP, "image_url": None}
ROLES = {"buyer": (), "merchant": ("merchant",), "operator": ("operator",)}


@pytest.fixture(scope="module")
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as issuer:
        yield issuer


@pytest.fixture(scope="module")
async def inventory_with_callers(issuer: Issuer, inventory_port: int, postgres: Any) -> AsyncIterator[int]:
    """The port of an inventory that only products may call, on the database that `inventory_port` has migrated."""
    config = InventoryConfig(
        admin=Listen(port=free_port()),
        grpc=Grpc(port=free_port()),
        postgres=postgres_config(postgres, "inventory"),
        auth=InventoryAuth(
            mode="required", issuer=issuer.url, audience="market-inventory", callers={SERVICE: "products"}
        ),
    )
    async with inventory_app.build(config, Process()) as server:
        await server.start()
        yield config.grpc.port
        await server.stop(1)


def service_token(issuer: Issuer, **claims: Any) -> str:
    return issuer.token(SERVICE, **{"audience": "market-inventory", "typ": None, **claims})


@pytest.fixture(scope="module")
async def shop(
    issuer: Issuer, start: Start, inventory_with_callers: int, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningProducts]:
    token_file = tmp_path_factory.mktemp("identity") / "token"
    token_file.write_text(service_token(issuer))
    async with start(
        inventory_with_callers,
        auth=Auth(mode="required", issuer=issuer.url),
        service_identity=ServiceIdentity(token_file=str(token_file)),
    ) as products:
        yield products


def signed_in(issuer: Issuer, role: str = "merchant", subject: str | None = None) -> dict[str, str]:
    return {"authorization": f"Bearer {issuer.token(subject or f'a-{role}', roles=ROLES[role])}"}


async def create(shop: RunningProducts, issuer: Issuer, **fields: Any) -> dict[str, Any]:
    response = await shop.http.post("/api/product", json={**LAMP, **fields}, headers=signed_in(issuer))
    assert response.status_code == 201, response.text
    return dict(response.json())


async def test_everybody_reads_products_without_a_token_or_with_any(shop: RunningProducts, issuer: Issuer) -> None:
    product = await create(shop, issuer, stock=2)
    for headers in ({}, *(signed_in(issuer, role) for role in ROLES)):
        one = await shop.http.get(f"/api/product/{product['id']}", headers=headers)
        page = await shop.http.get("/api/product", params={"ids": product["id"]}, headers=headers)
        for response in (one, page):
            assert response.status_code == 200
            assert response.headers["cache-control"] == "no-cache"
            assert "authorization" not in response.headers.get("vary", "")
        assert one.json() == page.json()["items"][0] == product


async def test_only_merchants_change_products_and_a_refusal_changes_nothing(
    shop: RunningProducts, issuer: Issuer
) -> None:
    product = await create(shop, issuer, stock=2)
    changes: list[tuple[str, str, Any]] = [
        ("POST", "/api/product", LAMP),
        ("PUT", "/api/product", {**FIELDS, "id": product["id"], "price": "1.00", "stock": 9}),
        ("DELETE", f"/api/product/{product['id']}", None),
    ]
    count = await shop.count()
    for method, path, body in changes:
        nobody = await shop.http.request(method, path, json=body)
        assert_problem(nobody, 401)
        assert nobody.headers["www-authenticate"] == 'Bearer realm="market"'
        for role in ("buyer", "operator"):
            refused = await shop.http.request(method, path, json=body, headers=signed_in(issuer, role))
            assert_problem(refused, 403)
            assert refused.json()["detail"] == "this requires the role merchant"
            assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
        expired = {"authorization": f"Bearer {issuer.token('m', roles=['merchant'], expires_in=-100)}"}
        broken = await shop.http.request(method, path, json=body, headers=expired)
        assert_problem(broken, 401)
        assert 'error="invalid_token"' in broken.headers["www-authenticate"]
    assert await shop.count() == count
    unchanged = await shop.http.get(f"/api/product/{product['id']}?stock=true", headers=signed_in(issuer))
    assert unchanged.json() == {**product, "stock": 2}
    for method, path, body in changes[1:]:
        assert (await shop.http.request(method, path, json=body, headers=signed_in(issuer))).is_success


async def test_only_merchants_see_the_stock_and_no_cache_shows_it_to_others(
    shop: RunningProducts, issuer: Issuer
) -> None:
    product = await create(shop, issuer, stock=2)
    for path in (f"/api/product/{product['id']}?stock=true", f"/api/product?ids={product['id']}&stock=true"):
        assert_problem(await shop.http.get(path), 401)
        for role in ("buyer", "operator"):
            assert_problem(await shop.http.get(path, headers=signed_in(issuer, role)), 403)
        seen = await shop.http.get(path, headers=signed_in(issuer))
        assert seen.status_code == 200
        assert seen.headers["cache-control"] == "private, no-cache"
        assert "authorization" in seen.headers["vary"]
    one = f"/api/product/{product['id']}?stock=true"
    tag = (await shop.http.get(one, headers=signed_in(issuer))).headers["etag"]
    assert tag == '"1.available.2"'
    same = await shop.http.get(one, headers={**signed_in(issuer), "if-none-match": tag})
    assert (same.status_code, same.headers["cache-control"]) == (304, "private, no-cache")
    assert same.headers["vary"] == "authorization, accept-encoding"
    # A tag that was seen or guessed confirms nothing to others.
    assert_problem(await shop.http.get(one, headers={"if-none-match": tag}), 401)
    assert_problem(await shop.http.get(one, headers={**signed_in(issuer, "buyer"), "if-none-match": tag}), 403)


async def test_an_invalid_token_is_refused_even_where_none_is_needed(shop: RunningProducts, issuer: Issuer) -> None:
    for token in ("garbage", issuer.token("ann", audience="another"), issuer.token("ann", expires_in=-100)):
        response = await shop.http.get("/api/product", headers={"authorization": f"Bearer {token}"})
        assert_problem(response, 401)
        assert token not in response.text + str(response.headers)


async def test_idempotency_keys_belong_to_the_subject_at_every_address(shop: RunningProducts, issuer: Issuer) -> None:
    key = str(uuid4())

    async def post(subject: str, name: str, address: str) -> httpx.Response:
        transport = httpx.AsyncHTTPTransport(local_address=address)
        headers = {"idempotency-key": key, **signed_in(issuer, subject=subject)}
        async with httpx.AsyncClient(base_url=shop.http.base_url, transport=transport, timeout=60) as client:
            return await client.post("/api/product", json={**LAMP, "name": name}, headers=headers)

    ada = await post("ada", "Lamp", "127.0.0.2")
    repeated = await post("ada", "Lamp", "127.0.0.3")
    assert (ada.status_code, repeated.status_code) == (201, 200)
    assert repeated.json()["id"] == ada.json()["id"]
    bea = await post("bea", "Cup", "127.0.0.2")
    assert bea.status_code == 201
    assert bea.json()["id"] != ada.json()["id"]
    assert_problem(await post("ada", "Cup", "127.0.0.2"), 422, "Idempotency-Key")
    callers = await shop.db.fetch("SELECT caller FROM products WHERE caller_key = $1 ORDER BY caller", key)
    assert [row["caller"] for row in callers] == ["subject:ada", "subject:bea"]


async def test_a_key_of_a_version_without_callers_is_not_shown_to_a_subject(
    shop: RunningProducts, issuer: Issuer
) -> None:
    """Such a key has no owner. Where callers sign in, it belongs to none of them."""
    key = str(uuid4())
    headers = {"idempotency-key": key, **signed_in(issuer)}
    old = await shop.http.post("/api/product", json=LAMP, headers=headers)
    await shop.db.execute("UPDATE products SET caller = NULL, caller_key = NULL WHERE idempotency_key = $1", key)
    for name, status in (("Cup", 201), ("Cup", 200), ("Lamp", 422)):
        response = await shop.http.post("/api/product", json={**LAMP, "name": name}, headers=headers)
        assert response.status_code == status, response.text
        assert response.json().get("id") != old.json()["id"]


async def test_the_audit_log_has_who_changed_what(shop: RunningProducts, issuer: Issuer) -> None:
    def headers(request_id: str) -> dict[str, str]:
        return {**signed_in(issuer, subject="mia"), "x-request-id": request_id}

    with capture_logs(processors=[logs._add_request]) as lines:
        posted = await shop.http.post("/api/product", json={**LAMP, "stock": 2}, headers=headers("r-create"))
        product_id = posted.json()["id"]
        changed = {**FIELDS, "id": product_id, "price": "9.00", "stock": 7}
        assert (await shop.http.put("/api/product", json=changed, headers=headers("r-change"))).is_success
        refused = await shop.http.delete(f"/api/product/{product_id}", headers=signed_in(issuer, "buyer"))
        assert refused.status_code == 403
        assert (await shop.http.delete(f"/api/product/{product_id}", headers=headers("r-delete"))).is_success
    audited = [line for line in lines if line.get("component") == "audit"]
    assert {line["target"] for line in audited} == {f"product {product_id}"}
    shown = [(line["event"], line["subject"], line["request_id"], line["before"], line["after"]) for line in audited]
    first = {"name": "Lamp", "price": "12.50", "currency": "GBP", "version": 1}
    second = {**first, "price": "9.00", "version": 2}
    assert [entry for entry in shown if entry[1] == "mia"] == [
        ("product created", "mia", "r-create", None, {**first, "stock": 2}),
        ("product replaced", "mia", "r-change", first, second),
        ("stock set", "mia", "r-change", {"stock": 2}, {"stock": 7, "version": 2}),
        ("product deleted", "mia", "r-delete", second, None),
    ]
    # Inventory, which runs in this process, too: the service that called it, under the same request ids.
    assert [entry for entry in shown if entry[1] != "mia"] == [
        ("stock set", SERVICE, "r-create", None, {"stock": 2, "product_version": 1}),
        ("stock set", SERVICE, "r-change", {"stock": 2}, {"stock": 7, "product_version": 2}),
    ]
    assert all(token not in str(lines) for token in issuer.issued)


async def test_a_change_whose_outcome_is_unknown_is_audited(
    issuer: Issuer, start: Start, inventory: FakeInventory
) -> None:
    async with (
        serving(inventory) as port,
        start(port, auth=Auth(mode="required", issuer=issuer.url)) as products,
    ):
        product = await create(products, issuer, stock=2)
        inventory.read_only = True
        with capture_logs() as lines:
            body = {**FIELDS, "id": product["id"], "stock": 5}
            response = await products.http.put("/api/product", json=body, headers=signed_in(issuer, subject="mia"))
        assert response.status_code == 503
    [line] = [line for line in lines if line["event"] == "stock set"]
    assert (line["subject"], line["before"], line["after"]) == (
        "mia",
        {"stock": 2},
        {"stock": 5, "outcome": "unknown"},
    )


async def test_a_refused_service_gives_its_callers_503_until_it_has_a_valid_token_again(
    issuer: Issuer, start: Start, inventory_with_callers: int, tmp_path: Path
) -> None:
    """Inventory refuses products, not the merchant, whom a 401 would make sign in again."""
    token_file = tmp_path / "token"
    token_file.write_text(service_token(issuer))
    async with start(
        inventory_with_callers,
        auth=Auth(mode="required", issuer=issuer.url),
        service_identity=ServiceIdentity(token_file=str(token_file)),
    ) as products:
        product = await create(products, issuer, stock=1)
        change = {**FIELDS, "id": product["id"], "stock": 5}
        for token, reason in (
            (service_token(issuer, expires_in=-100), "the token has expired"),
            (issuer.token("system:serviceaccount:market:graphql-service", audience="market-inventory"), "products"),
        ):
            token_file.write_text(token)
            with capture_logs() as lines:
                await refused(products, issuer, change)
            [line] = [line for line in lines if line["event"] == "service identity refused"]
            assert line["upstream"] == "inventory"
            assert reason in line["reason"]
            assert reason in (await products.health.unavailable_dependencies())["inventory-identity"]
            assert token not in str(lines)
            # What needs no inventory is still served.
            shown = await products.http.get(f"/api/product/{product['id']}?availability=false")
            assert shown.status_code == 200
        token_file.write_text(service_token(issuer))
        with capture_logs() as lines:
            await accepted(products, issuer, change)
        assert "service identity accepted again" in [line["event"] for line in lines]
        assert await products.health.unavailable_dependencies() == {}


async def refused(products: RunningProducts, issuer: Issuer, change: dict[str, Any]) -> None:
    """Wait until the changed token file has been read, whose token inventory refuses."""
    async with asyncio.timeout(30):
        while (response := await products.http.put("/api/product", json=change, headers=signed_in(issuer))).is_success:
            await asyncio.sleep(0.1)
    assert_problem(response, 503)
    assert response.headers["retry-after"]
    assert "www-authenticate" not in response.headers


async def accepted(products: RunningProducts, issuer: Issuer, change: dict[str, Any]) -> None:
    async with asyncio.timeout(30):
        while not (await products.http.put("/api/product", json=change, headers=signed_in(issuer))).is_success:
            await asyncio.sleep(0.1)


async def test_products_is_not_ready_before_it_has_a_token_that_inventory_accepts(
    issuer: Issuer, start: Start, inventory_with_callers: int, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    started = asyncio.Event()

    async def run() -> None:
        async with start(
            inventory_with_callers,
            auth=Auth(mode="required", issuer=issuer.url),
            service_identity=ServiceIdentity(token_file=str(token_file)),
        ):
            started.set()

    with capture_logs() as lines:
        task = asyncio.create_task(run())
        for reason in ("this service has no token", "audience"):
            async with asyncio.timeout(30):
                while reason not in str([line for line in lines if line["event"] == "waiting for dependency"]):
                    await asyncio.sleep(0.05)
            assert not started.is_set()
            token_file.write_text(service_token(issuer, audience="another"))
        token_file.write_text(service_token(issuer))
        await asyncio.wait_for(task, 60)
    assert started.is_set()


async def test_products_starts_while_the_issuer_of_its_client_credentials_is_unavailable(
    issuer: Issuer, start: Start, inventory_with_callers: int
) -> None:
    identity = ServiceIdentity(
        client_id="products", client_secret="secret", token_url=f"http://127.0.0.1:{free_port()}/token"
    )
    auth = Auth(mode="required", issuer=issuer.url)
    async with start(inventory_with_callers, auth=auth, service_identity=identity) as products:
        assert (await products.http.get("/api/product?limit=1&availability=false")).status_code == 200
        refused = await products.http.post("/api/product", json=LAMP, headers=signed_in(issuer))
        assert_problem(refused, 503)
        reported = (await products.health.unavailable_dependencies())["inventory-identity"]
        assert reported.startswith("this service has no token")


async def test_schemathesis_finds_nothing_undocumented_as_a_merchant(
    shop: RunningProducts, issuer: Issuer, tmp_path: Path
) -> None:
    for _ in range(3):
        await create(shop, issuer, stock=1)
    token = issuer.token("mia", roles=["merchant"])
    await check_with_schemathesis(FILE, str(shop.http.base_url), tmp_path, token=token)
