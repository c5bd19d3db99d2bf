"""The desk's stops of the tour."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from uuid import uuid4

import msgspec
from confluent_kafka import Producer

from market.contracts import events
from market.notifications.dead_letters import writer
from tests.storefront.importing import retail
from tests.storefront.tour import Stop, Tour, at
from tests.system.whole_shop import retried


async def _wrong_product(tour: Tour) -> None:
    await tour.go("/desk/products/new")
    await tour.send("/desk/products", name="", price="a lot")


async def _two_editors(tour: Tour) -> None:
    path = f"/desk/products/{tour.products['edited']}"
    await tour.go(path)
    price = float(await tour.tab.evaluate("document.querySelector('main input[name=price]').value"))
    # Another editor saves, while the page is open.
    await tour.tab.evaluate(f"""(async () => {{
        const body = new URLSearchParams(new FormData(document.querySelector('main form[action="{path}"]')));
        body.set("price", "{price + 1:.2f}");
        await fetch("{path}", {{method: "POST", body}});
    }})()""")
    await tour.send(path, price=f"{price + 2:.2f}")


async def _deletion_of_a_changed_product(tour: Tour) -> None:
    path = f"/desk/products/{tour.products['edited']}/deletion"
    await tour.go(path)
    await tour.send(path, version="99", seen_name="Cup", seen_image_url="/images/teapot.svg")


async def _wrong_count(tour: Tour) -> None:
    path = f"/desk/products/{tour.products['edited']}"
    await tour.go(f"{path}/stock")
    await tour.send(f"{path}/stock-take", counted="ten")


async def _stock_take_of_a_changed_product(tour: Tour) -> None:
    path = f"/desk/products/{tour.products['edited']}"
    await tour.go(f"{path}/stock")
    await tour.send(f"{path}/stock-take", version="99", seen_stock="12", counted="9")


async def _unknown_outcome(tour: Tour) -> None:
    path = f"/desk/products/{tour.products['edited']}"
    tour.gateway.off = set()
    await tour.go(path)
    tour.gateway.off = {"products"}
    await tour.send(path, name="Tour cup")


_IMPORTED = retail("22423;Cake stand;3;12.75", "84879;Bird ornament;40;1.69", "22720;Cake tins;5;4.95")


async def _dry_run(tour: Tour) -> None:
    await tour.go("/desk/import")
    await tour.leave(f"""(() => {{
        const files = new DataTransfer();
        files.items.add(new File([{json.dumps(_IMPORTED.decode())}], "products.csv", {{type: "text/csv"}}));
        document.getElementById("file").files = files.files;
        document.querySelector("main form[action='/desk/import'] button").click();
    }})()""")
    await tour.tab.until("document.querySelector('main button[value=report]') !== null")


async def _unsent_mails(tour: Tour) -> None:
    await asyncio.to_thread(_write_dead_letter, str(tour.shop.stack.urls["kafka"]))
    await tour.go("/desk/dead-letters")


async def _unsent_mail_tried_again(tour: Tour) -> None:
    await _unsent_mails(tour)
    await tour.send("/desk/dead-letters", "replay")


def _write_dead_letter(bootstrap_servers: str) -> None:
    """Write a dead letter whose event is too short to be mailed, so that it stays open."""
    event = {"type": events.CREATED, "data": {"id": str(uuid4()), "email": "ann@example.com"}}
    headers = {
        writer.REASON: "rejected: 550 5.1.1 <ann@example.com>: no such user",
        writer.TIME: datetime.now(UTC).isoformat(),
        writer.ATTEMPTS: "1",
    }
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    encoded = [(name, text.encode()) for name, text in headers.items()]
    producer.produce(events.DEAD_LETTER_TOPIC, msgspec.json.encode(event), headers=encoded)
    assert producer.flush(60) == 0


async def _place_order(tour: Tour, quantity: int) -> None:
    """Order units of a product by REST. 100,000 are too many, and the order is rejected."""
    url = f"{tour.shop.stack.urls['orders']}/api/order"
    items = [{"product_id": tour.products["teapot"], "quantity": quantity}]
    body = {"user": tour.gateway.user, "items": items}
    headers = {"Idempotency-Key": uuid4().hex}
    response = await retried(lambda: tour.shop.http.post(url, json=body, headers=headers), 503)
    assert response.status_code == (409 if quantity == 100_000 else 201), response.text


async def _desk_orders(tour: Tour) -> None:
    await _place_order(tour, 1)
    await tour.go("/desk/orders")


async def _desk_order(tour: Tour) -> None:
    await _place_order(tour, 1)
    await tour.go("/desk/orders?status=confirmed")
    await tour.leave("document.querySelector('main tbody a').click()")


async def _desk_cancellation(tour: Tour) -> None:
    await _desk_order(tour)
    await tour.leave("document.querySelector('main a[href$=cancellation]').click()")


async def _shortages(tour: Tour) -> None:
    await _place_order(tour, 100_000)
    await tour.go("/desk/shortages")


DESK_STOPS = (
    Stop("desk", at("/desk")),
    Stop("desk-products", at("/desk/products"), "main table"),
    Stop("desk-product-new", at("/desk/products/new"), "#name"),
    Stop("desk-product-mistakes", _wrong_product, "[role=alert]"),
    Stop("desk-product", at("/desk/products/{teapot}"), "#name"),
    Stop("desk-product-conflict", _two_editors, "[role=alert]"),
    Stop("desk-product-deletion", at("/desk/products/{teapot}/deletion"), "main form"),
    Stop("desk-product-deletion-conflict", _deletion_of_a_changed_product, "del"),
    Stop("desk-outcome-unknown", _unknown_outcome, "main input[name=seen_name]", off=frozenset({"products"})),
    Stop("desk-stock-mistake", _wrong_count, ".box.bad"),
    Stop("desk-stock-conflict", _stock_take_of_a_changed_product, ".box.warn"),
    Stop("desk-stock", at("/desk/products/{teapot}/stock"), "main form"),
    Stop("desk-import", at("/desk/import"), "#file"),
    Stop("desk-import-dry-run", _dry_run, "main table"),
    Stop("desk-dead-letters", _unsent_mails, "main table form"),
    Stop("desk-dead-letters-resolved", _unsent_mail_tried_again, ".outcomes"),
    Stop("desk-orders", _desk_orders, "main table"),
    Stop("desk-order", _desk_order, "main dl"),
    Stop("desk-order-cancellation", _desk_cancellation, "button.danger"),
    Stop("desk-shortages", _shortages, "main table"),
    Stop("desk-unfinished", at("/desk/unfinished"), "main table form"),
    Stop("desk-outage", at("/desk/products"), off=frozenset({"products"})),
)
