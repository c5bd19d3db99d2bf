"""The whole shop with sign-in: five processes on real stores, whose tokens come from the test issuer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import httpx

from tests.authorization.collector import Collector
from tests.authorization.stores import Stores
from tests.support.issuer import Client, Issuer
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess
from tests.support.waiting import PATIENCE

SERVICES = ("products", "orders", "inventory", "notifications", "graphql")
# The subjects of the services' own tokens, by service.
SUBJECTS = {"products": "market-products", "orders": "market-orders"}
SECRETS = {service: f"the-client-secret-of-{service}" for service in SUBJECTS}


@dataclass(repr=False)
class Shop:
    """A running shop. `inventory` is a channel to inventory; `admin` are the addresses of the admin ports."""

    issuer: Issuer
    processes: dict[str, ServiceProcess]
    urls: dict[str, str]
    admin: dict[str, str]
    http: httpx.AsyncClient
    inventory: grpc.aio.Channel
    stores: Stores
    collector: Collector
    # By key, subject and roles, so that each is made once.
    _tokens: dict[tuple[str, ...], str] = field(default_factory=dict)

    @property
    def logs(self) -> dict[str, str]:
        """What each process has logged so far."""
        return {name: process.log for name, process in self.processes.items()}

    def token(self, subject: str, *roles: str) -> str:
        """Return a valid token of a person, whose e-mail address is verified."""
        key = (self.issuer.signing_key.kid, subject, *roles)
        if key not in self._tokens:
            self._tokens[key] = self.issuer.token(
                subject, roles=roles, email=f"{subject}@people.example", expires_in=3600
            )
        return self._tokens[key]

    async def rest(
        self, service: str, method: str, path: str, token: str | None = None, **request: Any
    ) -> httpx.Response:
        """Send a request to the REST API of a service, with the token if there is one."""
        headers = {**bearer(token), **request.pop("headers", {})}
        return await self.http.request(method, self.urls[service] + path, headers=headers, **request)

    async def graphql(
        self, document: str, token: str | None = None, variables: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        body = {"query": document, "variables": variables or {}}
        return await self.http.post(f"{self.urls['graphql']}/graphql", json=body, headers=bearer(token))

    async def create_product(self, **fields: Any) -> dict[str, Any]:
        """Create a product as a merchant, and return it."""
        body = {"name": "Lamp", "description": "", "price": "2.50", "currency": "GBP", "stock": 1_000, **fields}
        response = await self.rest("products", "POST", "/api/product", self.token("mia", "merchant"), json=body)
        assert response.status_code == 201, response.text
        return dict(response.json())

    async def place_order(
        self, token: str, product_id: str, *, key: str | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Place an order for one unit, and return it."""
        body = {"items": [{"product_id": product_id, "quantity": 1}], **fields}
        headers = {"Idempotency-Key": key} if key else {}
        response = await self.rest("orders", "POST", "/api/order", token, json=body, headers=headers)
        assert response.status_code in (200, 201), response.text
        return dict(response.json())


def bearer(token: str | None) -> dict[str, str]:
    """Return the header with the token; no header without a token."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def running_shop(
    issuer: Issuer, postgres: Any, redis_server: Any, mongodb: Any, kafka: Any, mail: Any, directory: Path, **auth: Any
) -> AsyncIterator[Shop]:
    """Run a shop that requires sign-in, on databases of its own. `auth` changes the section `auth` of all services."""
    for service, subject in SUBJECTS.items():
        issuer.clients[subject] = Client(SECRETS[service], {"roles": ["service"]})
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(Collector().serving())
        stores = await stack.enter_async_context(Stores.created(postgres, redis_server, mongodb, kafka, mail))
        configs = _configs(issuer, stores, kafka, mail, collector, auth)
        processes = {name: ServiceProcess(name, configs[name], directory) for name in SERVICES}
        for process in processes.values():
            stack.callback(process.kill)
        migrated = [processes[name] for name in ("products", "orders", "inventory")]
        for process in migrated:
            process.start("migrate")
        for process in migrated:
            assert await process.exited(2 * PATIENCE) == 0, process.log
        for process in processes.values():
            process.start()
        await asyncio.gather(*(process.ready() for process in processes.values()))
        ports = {name: configs[name].get("http", configs[name].get("grpc", {})).get("port") for name in SERVICES}
        limits = httpx.Limits(max_connections=256)
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=PATIENCE, limits=limits))
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{ports['inventory']}")
        yield Shop(
            issuer,
            processes,
            {name: f"http://127.0.0.1:{ports[name]}" for name in ("products", "orders", "notifications", "graphql")},
            {name: f"http://127.0.0.1:{process.admin_port}" for name, process in processes.items()},
            http,
            await stack.enter_async_context(channel),
            stores,
            collector,
        )
        for process in processes.values():
            process.terminate()
        for name, process in processes.items():
            assert await process.exited() == 0, f"{name}: {process.log}"


def _configs(
    issuer: Issuer, stores: Stores, kafka: Any, mail: Any, collector: Collector, changed_auth: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the configuration of each service. Deadlines are long, because a machine may stand still for seconds."""
    ports = {name: free_port() for name in SERVICES}
    partitions = 4 if kafka.kind == "apache" else 0
    auth = {"mode": "required", "issuer": issuer.url, "refresh_seconds": 10, "min_refetch_seconds": 0.2, **changed_auth}
    common: dict[str, dict[str, Any]] = {
        name: {
            "testing": True,
            "admin": {"port": free_port()},
            "log": {"level": "debug"},
            "shutdown": {"drain_seconds": 0, "grace_seconds": 30},
            "tracing": {
                "otlp_endpoint": f"{collector.url}/v1/traces",
                "sample_ratio": 1,
                "max_traces_per_second": 100_000,
            },
        }
        for name in SERVICES
    }
    inventory = {"target": f"127.0.0.1:{ports['inventory']}", "timeout_seconds": 20}
    products = {"url": f"http://127.0.0.1:{ports['products']}", "timeout_seconds": 20}
    orders = {"url": f"http://127.0.0.1:{ports['orders']}", "timeout_seconds": 20}
    identity = {
        service: {"client_id": SUBJECTS[service], "client_secret": SECRETS[service], "timeout_seconds": 20}
        for service in SUBJECTS
    }
    sections: dict[str, dict[str, Any]] = {
        "products": {
            "http": {"port": ports["products"]},
            "auth": auth,
            "service_identity": identity["products"],
            "postgres": stores.postgres["products"],
            # Entries outlive the tests, so that an entry that disappears is a difference.
            "redis": {"url": stores.redis_url, "timeout_seconds": 5},
            "availability": {"ttl_seconds": 3600, "timeout_seconds": 20},
            "inventory": inventory,
            "request_seconds": 30,
        },
        "orders": {
            "http": {"port": ports["orders"]},
            "auth": auth,
            "service_identity": identity["orders"],
            "create_order_timeout_seconds": 50,
            "default_timeout_seconds": 40,
            "mongodb": {**stores.mongodb, "timeout_seconds": 20},
            "inventory": inventory,
            "products": products,
            "kafka": {"bootstrap_servers": kafka.bootstrap_servers, "partitions": partitions, "delivery_seconds": 10},
            "recovery": {"reject_after_seconds": 600, "lease_seconds": 30, "relay_interval_seconds": 0.2},
        },
        "inventory": {
            "grpc": {"port": ports["inventory"]},
            "auth": {**auth, "callers": {subject: service for service, subject in SUBJECTS.items()}},
            "postgres": stores.postgres["inventory"],
        },
        "notifications": {
            "http": {"port": ports["notifications"]},
            "auth": auth,
            "kafka": {
                "bootstrap_servers": kafka.bootstrap_servers,
                "group": stores.group,
                "dead_letter_topic": stores.dead_letter_topic,
                "partitions": partitions,
                "session_timeout_seconds": 20 if partitions else 6,
            },
            "smtp": {"host": "127.0.0.1", "port": mail.smtp_port, "timeout_seconds": 30},
            "mail": {"from": "Market <shop@market.test>"},
        },
        "graphql": {"http": {"port": ports["graphql"]}, "auth": auth, "products": products, "orders": orders},
    }
    return {name: common[name] | sections[name] for name in SERVICES}
