"""A disturbance of the shop under a steady load: what failed meanwhile, and the books afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from tests.cluster import books, cluster
from tests.cluster.conftest import Report
from tests.cluster.load import Audit, Load


async def run_load(
    shop: str, products: list[str], report: Report, name: str, disturb: Callable[[Load], object]
) -> Load:
    """Return the load before, during and after the disturbance, and balance the books: all of its orders exist exactly
    once, have taken their units from stock, and were mailed."""
    units = await asyncio.to_thread(books.units_left, products)
    async with Load(shop, products) as load:
        await asyncio.sleep(3)
        started = load.now()
        await asyncio.to_thread(disturb, load)
        seconds = load.now() - started
        await asyncio.sleep(5)
    audit = await load.audit()
    report[name] = {
        "failed": len(load.failures),
        "of": load.requests,
        "seconds until ready": round(seconds, 1),
        "slowest": round(load.slowest, 2),
        "repeated": audit.repeated,
        "lost": audit.lost,
        "duplicated": audit.duplicated,
    } | kill_statistics(load)
    if load.failures:
        print(*map(str, load.failures[:20]), sep="\n")
    assert (audit.lost, audit.duplicated) == (0, 0)
    await asyncio.to_thread(balance, load, audit, units, report, name)
    return load


def balance(load: Load, audit: Audit, units: Mapping[str, int], report: Report, name: str) -> None:
    """Compare the orders with the stock before and after them, and with the mails."""
    expected = {product: left - audit.sold[product] for product, left in units.items()}
    # An order whose request failed may hold its units until recovery has decided about it.
    cluster.seconds_until("the stock adds up", lambda: books.units_left(units) == expected, 180)
    seconds = cluster.seconds_until(
        "every order is mailed", lambda: len(set(books.mails_to(load.email))) >= audit.orders
    )
    mails = books.mails_to(load.email)
    report[f"mails: {name}"] = {"orders": audit.orders, "mails": len(mails), "seconds": round(seconds, 1)}
    # A killed process may have sent a mail that it had not noted yet; it is sent again with the same Message-ID.
    assert len(set(mails)) == audit.orders


def kill_statistics(load: Load) -> dict[str, int]:
    """Return the requests around the kill; an empty dictionary if nothing was killed."""
    if load.killed[0] == float("inf"):
        return {}
    return {
        "in flight": len(load.in_flight),
        "in flight and failed": sum(f in load.failures for f in load.in_flight),
        "failed later by the shop": len(load.failed_after_the_kill(by_shop=True)),
        "failed later at the ingress": len(load.failed_after_the_kill(by_shop=False)),
    }
