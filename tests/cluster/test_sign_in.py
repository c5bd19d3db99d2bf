"""Sign-in on a cluster: the issuer is a pod, and services call inventory with the cluster's own tokens.

The main rows of the table in market/contracts/access.py, through the ingress and between pods.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.cluster import cluster
from tests.cluster.conftest import Report
from tests.cluster.issuer_program import PORT, SECRET, STOREFRONT, URL
from tests.cluster.sign_in import ADDED, PEOPLE, add_sign_in
from tests.cluster.test_a_deploy import copy_project, mails_to
from tests.cluster.test_network import connect
from tests.storefront.test_purchase import sent
from tests.storefront.visitor import Document, Visitor

LAMP = {"name": "Lamp", "description": "", "price": "2.50", "currency": "GBP", "image_url": None}


@dataclass
class Shop:
    """The shop behind the ingress. `tokens`: by person. `issuer`: where the issuer is reached from here."""

    url: str
    issuer: str
    tokens: dict[str, str]

    def call(self, who: str, method: str, path: str, body: Any = None, *, token: str | None = None) -> tuple[int, Any]:
        """Send a request as this person ("nobody": without a token), and return status and body."""
        headers = {"content-type": "application/json"}
        if token or who != "nobody":
            headers["authorization"] = f"Bearer {token or self.tokens[who]}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as e:
            return e.code, {**json.loads(e.read() or b"null"), "challenge": e.headers.get("www-authenticate")}

    def status(self, who: str, method: str, path: str, body: Any = None) -> int:
        return self.call(who, method, path, body)[0]

    def graphql(self, who: str, document: str) -> Any:
        """Return the data, or the code of the first error."""
        _, body = self.call(who, "POST", "/graphql", {"query": document})
        return body["errors"][0]["extensions"]["code"] if body.get("errors") else body["data"]


@pytest.fixture(scope="module")
def signed_in(shop: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The shop with sign-in required; afterwards it is open again."""
    copy = copy_project(tmp_path_factory.mktemp("sign-in") / "project")
    discovery = json.loads(cluster.run("kubectl", "get", "--raw", "/.well-known/openid-configuration").stdout)
    add_sign_in(copy / "deploy", discovery["issuer"])
    try:
        cluster.deploy("--overlay", "base", root=copy)
        cluster.wait_for_rollout("issuer", "statefulset")
        cluster.wait_until_all_are_ready()
        with cluster.forwarded("service/issuer", PORT, 28096) as issuer:
            yield Shop(cluster.address(), issuer, {name: request_token(issuer, name) for name in PEOPLE})
    finally:
        cluster.deploy("--overlay", "base")
        cluster.kubectl("delete", "--ignore-not-found", *ADDED)
        cluster.wait_until_all_are_ready()


def request_token(issuer: str, name: str) -> str:
    """Return a token by client credentials."""
    credentials = base64.b64encode(f"{name}:{SECRET}".encode()).decode()
    request = urllib.request.Request(
        f"{issuer}/token",
        urllib.parse.urlencode({"grant_type": "client_credentials"}).encode(),
        {"authorization": f"Basic {credentials}"},
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        return str(json.load(response)["access_token"])


def create_product(shop: Shop) -> dict[str, Any]:
    status, product = shop.call("mia", "POST", "/api/product", {**LAMP, "stock": 5})
    assert status == 201, product
    return dict(product)


def by_person(shop: Shop, method: str, path: str, body: Any = None) -> dict[str, int]:
    return {who: shop.status(who, method, path, body) for who in ("nobody", *PEOPLE)}


def test_everybody_reads_products_and_only_merchants_change_them(signed_in: Shop) -> None:
    product = create_product(signed_in)
    path = f"/api/product/{product['id']}"
    refused = {"nobody": 401, "ann": 403, "ben": 403, "olga": 403}
    assert by_person(signed_in, "GET", path) == {**dict.fromkeys(refused, 200), "mia": 200}
    assert by_person(signed_in, "GET", f"{path}?stock=true") == {**refused, "mia": 200}
    change = {**LAMP, "id": product["id"], "price": "3.00", "stock": 4}
    assert by_person(signed_in, "POST", "/api/product", LAMP) == {**refused, "mia": 201}
    assert by_person(signed_in, "PUT", "/api/product", change) == {**refused, "mia": 200}
    assert by_person(signed_in, "DELETE", path) == {**refused, "mia": 204}


def test_a_token_that_is_not_valid_is_refused_with_the_reason(signed_in: Shop) -> None:
    header, payload, signature = signed_in.tokens["mia"].split(".")
    forged = payload[:-4] + ("AAAA" if payload[-4:] != "AAAA" else "BBBB")
    for token in ("garbage", f"{header}.{forged}.{signature}"):
        status, problem = signed_in.call("mia", "GET", "/api/product", token=token)
        assert status == 401
        assert 'error="invalid_token"' in problem["challenge"]


def test_buyers_see_and_cancel_their_own_orders_only(signed_in: Shop) -> None:
    product = create_product(signed_in)
    body = {"items": [{"product_id": product["id"], "quantity": 1}]}
    assert signed_in.status("nobody", "POST", "/api/order", body) == 401
    assert signed_in.status("olga", "POST", "/api/order", body) == 403
    assert signed_in.status("ann", "POST", "/api/order", {**body, "user": "ben"}) == 403
    status, order = signed_in.call("ann", "POST", "/api/order", body)
    assert (status, order["user"], order["status"]) == (201, "ann", "confirmed")
    path = f"/api/order/{order['id']}"
    assert by_person(signed_in, "GET", path) == {"nobody": 401, "ann": 200, "ben": 404, "mia": 200, "olga": 200}
    for who in ("ann", "mia", "olga"):
        assert order["id"] in [o["id"] for o in signed_in.call(who, "GET", "/api/order")[1]["items"]], who
    assert signed_in.call("ben", "GET", "/api/order")[1]["items"] == []
    assert signed_in.status("nobody", "GET", "/api/order") == 401
    refused = {who: signed_in.status(who, "DELETE", path) for who in ("nobody", "ben", "olga")}
    assert refused == {"nobody": 401, "ben": 404, "olga": 403}
    assert signed_in.status("ann", "DELETE", path) == 204
    _, shown = signed_in.call("mia", "GET", f"/api/product/{product['id']}?stock=true")
    assert shown["stock"] == 5


def test_the_gateway_forwards_the_callers_own_token(signed_in: Shop) -> None:
    product = create_product(signed_in)
    create = (
        'mutation { createProduct(input: {name: "Cup", description: "", price: "1.00", currency: "GBP"}) { name } }'
    )
    assert signed_in.graphql("nobody", create) == "UNAUTHENTICATED"
    assert signed_in.graphql("ann", create) == "FORBIDDEN"
    assert signed_in.graphql("mia", create) == {"createProduct": {"name": "Cup"}}
    items = f'[{{productId: "{product["id"]}", quantity: 1}}]'
    placed = signed_in.graphql("ann", f"mutation {{ createOrder(input: {{items: {items}}}) {{ id user }} }}")
    assert placed["createOrder"]["user"] == "ann"
    read = f'{{ order(id: "{placed["createOrder"]["id"]}") {{ user }} }}'
    assert signed_in.graphql("ann", read) == {"order": {"user": "ann"}}
    assert signed_in.graphql("ben", read) in ({"order": None}, "NOT_FOUND")


async def sign_in_at_the_issuer(shop: Shop, visitor: Visitor, path: str, person: str) -> Document:
    """Open a page that asks the visitor to sign in, let them do so as the person, and return the page."""
    response = await visitor.get(path)
    while response.is_redirect and not response.headers["location"].startswith(URL):
        response = await visitor.get(response.headers["location"])
    location = response.headers["location"]
    assert f"client_id={STOREFRONT}" in location
    answer = await visitor.get(f"{location.replace(URL, shop.issuer)}&person={person}")
    return await visitor.open(answer.headers["location"])


async def test_a_person_signs_in_at_the_storefront_and_buys(signed_in: Shop) -> None:
    product = create_product(signed_in)
    async with httpx.AsyncClient(base_url=signed_in.url, timeout=60) as http:
        visitor = Visitor(http, signed_in.url)
        page = await visitor.open(f"/products/{product['id']}")
        assert "Sign in" in page.text
        response = await visitor.send(page.form("/basket"), ("action", "add"), quantity="2")
        assert (response.status_code, response.headers["location"]) == (303, "/basket")
        checkout = await sign_in_at_the_issuer(signed_in, visitor, "/checkout", "ann")
        assert "Signed in as ann" in checkout.text
        response = await sent(visitor, checkout.form("/checkout"))
        page = await visitor.open(response.headers["location"])
        assert "Thank you for your order" in page.text
        order = response.headers["location"].split("/")[2].split("?")[0]
    status, placed = signed_in.call("ann", "GET", f"/api/order/{order}")
    assert (status, placed["user"], placed["status"], placed["total"]) == (200, "ann", "confirmed", "5.00")
    assert signed_in.status("ben", "GET", f"/api/order/{order}") == 404
    assert order in json.dumps(mails_to("ann@example.test"))


# Calls a method of inventory from a pod, and prints the status. `own`: with the pod's token.
CALL = """
import sys, grpc
from market.contracts import inventory_pb2 as pb
from market.contracts.inventory_pb2_grpc import InventoryStub
method, request, own = sys.argv[1:]
metadata = [("authorization", "Bearer " + open("/var/run/secrets/market/token").read())] if own == "own" else []
channel = grpc.insecure_channel("inventory-service:50051")
try:
    getattr(InventoryStub(channel), method)(getattr(pb, request)(), metadata=metadata, timeout=10)
    print("OK")
except grpc.RpcError as e:
    print(e.code().name)
"""


@pytest.mark.parametrize(
    ("pod", "method", "token", "status"),
    [
        ("product-service", "GetStock", "own", "OK"),
        ("product-service", "ListReservations", "own", "PERMISSION_DENIED"),
        ("order-service", "ListReservations", "own", "OK"),
        ("order-service", "CheckAvaliable", "own", "PERMISSION_DENIED"),
        ("order-service", "AddStock", "own", "PERMISSION_DENIED"),
        ("product-service", "GetStock", "none", "UNAUTHENTICATED"),
    ],
)
def test_inventory_knows_its_callers_by_the_clusters_own_tokens(
    signed_in: Shop, pod: str, method: str, token: str, status: str
) -> None:
    name = cluster.names(pod)[-1]
    output = cluster.kubectl(
        "exec", name, "-c", "service", "--", "python", "-c", CALL, method, f"{method}Request", token
    )
    assert output == status


def test_the_issuer_is_reached_by_those_that_verify_peoples_tokens(signed_in: Shop, report: Report) -> None:
    target = ("issuer", PORT)
    found = {name: connect(name, [target])[target] for name in cluster.SERVICES}
    report["connections to the issuer"] = found
    # Inventory knows the services by the tokens of the cluster, and no people.
    assert found == {**dict.fromkeys(cluster.SERVICES, "open"), "inventory-service": "closed"}


def test_the_audit_log_has_the_merchant_and_the_service(signed_in: Shop) -> None:
    product = create_product(signed_in)
    found = set()
    for name in ("product-service", "inventory-service"):
        for pod in cluster.names(name):
            for line in cluster.kubectl("logs", pod, "-c", "service", "--since=5m").splitlines():
                entry = json.loads(line) if line.startswith("{") else {}
                if entry.get("component") == "audit" and product["id"] in entry["target"]:
                    found.add((entry["event"], entry["subject"]))
    assert found == {
        ("product created", "mia"),
        ("stock set", "system:serviceaccount:market:product-service"),
    }


def test_no_token_is_in_a_log(signed_in: Shop) -> None:
    create_product(signed_in)
    for name in cluster.SERVICES:
        for pod in cluster.names(name):
            text = cluster.kubectl("logs", pod, "-c", "service", "--since=10m")
            assert not [who for who, token in signed_in.tokens.items() if token in text or token.split(".")[2] in text]
