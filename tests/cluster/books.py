"""The books of the shop on the cluster: what is left of a stock, what was mailed, and what reconcile finds."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterable

from tests.cluster import cluster

# The local port to which the mail catcher's web page is forwarded.
MAIL_PORT = 28026


def units_left(products: Iterable[str]) -> dict[str, int]:
    """Return the units of each product that are free to sell, which no API tells."""
    ids = ", ".join(f"'{product}'" for product in products)
    query = f"SELECT product_id, quantity FROM inventory WHERE product_id IN ({ids})"  # our own ids
    psql = ["psql", "--host=/var/run/postgresql", "--username=postgres", "--dbname=inventory", "-Atc", query]
    lines = cluster.kubectl("exec", "postgresql-0", "-c", "postgresql", "--", *psql).splitlines()
    return {product: int(units) for product, units in (line.split("|") for line in lines)}


def mails_to(email: str) -> list[str]:
    """Return the Message-ID of each mail to the address; a mail that was sent twice is there twice."""
    found: list[str] = []
    with cluster.forwarded("service/mail", 8025, MAIL_PORT) as mail:
        while True:
            url = f"{mail}/api/messages?to={email}&limit=500&offset={len(found)}"
            with urllib.request.urlopen(url, timeout=15) as response:
                page = json.load(response)["items"]
            if not page:
                return found
            found += [item["message_id"] for item in page]


def reconcile(*options: str) -> int:
    """Return the exit status of reconcile: 0 if orders, reservations and stock agree."""
    command = ["kubectl", "-n", cluster.NAMESPACE, "exec", "deployment/order-service", "-c", "service", "--"]
    done = cluster.run(*command, "python", "-m", "market.orders", "reconcile", *options, check=False)
    print(done.stdout, done.stderr)
    return done.returncode
