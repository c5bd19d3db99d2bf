"""What a signed-in caller does with orders of others is in the audit log, and no token is in any log."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.issuer import Issuer

from .catalogue import FakeCatalogue
from .gates import arm, gated_service
from .service import IDLE, MakeSettings, on_new_database
from .sign_in import Caller, Shop
from .stock import Stock
from .topic import Topic


@pytest.fixture
async def lamp(catalogue: FakeCatalogue, stock: Stock) -> str:
    product_id = catalogue.add()
    await stock.set(product_id, 50)
    return product_id


@pytest.fixture
async def own_shop(make_settings: MakeSettings, migrated: None, issuer: Issuer, tmp_path: Path) -> AsyncIterator[Shop]:
    """An instance that requires sign-in, whose failure points can be armed."""
    settings = await on_new_database(make_settings, recovery=IDLE)
    async with gated_service(settings(auth={"mode": "required", "issuer": issuer.url}), tmp_path) as service:
        yield Shop(service, issuer)


def audited(lines: Any) -> list[tuple[str, Any, Any]]:
    """Return the event of each entry in the audit log, with the state before and after."""
    return [(line["event"], line["before"], line["after"]) for line in lines if line.get("component") == "audit"]


async def test_a_cancellation_whose_outcome_is_unknown_is_in_the_audit_log(own_shop: Shop, lamp: str) -> None:
    order = (await own_shop.sign_in("ann").place([(lamp, 1)])).json()
    merchant = own_shop.sign_in("mia", "merchant")
    arm(own_shop.service, "orders.before-cancel-status", "fail")
    with capture_logs() as lines:
        assert (await merchant.cancel(order["id"])).status_code == 503
    before = {"user": "ann", "status": "confirmed"}
    assert audited(lines) == [("order cancelled", before, {"user": "ann", "status": "outcome unknown"})]
    # A lost acknowledgement is found out by reading the order again.
    arm(own_shop.service, "orders.after-cancel-status", "fail")
    with capture_logs() as lines:
        assert (await merchant.cancel(order["id"])).status_code == 204
    assert audited(lines) == [("order cancelled", before, {"user": "ann", "status": "cancelled"})]


async def test_refused_requests_and_rejected_orders_are_not_in_the_audit_log(own_shop: Shop, lamp: str) -> None:
    order = (await own_shop.sign_in("ann").place([(lamp, 1)])).json()
    with capture_logs() as lines:
        assert (await own_shop.sign_in("bob").cancel(order["id"])).status_code == 404
        assert (await own_shop.sign_in("otto", "operator").cancel(order["id"])).status_code == 403
        merchant = own_shop.sign_in("mia", "merchant")
        assert (await merchant.place([(lamp, 1000)], user="ann")).status_code == 409
    assert audited(lines) == []


async def test_an_entry_names_the_request_and_no_log_has_a_token(
    make_process: Any, catalogue: FakeCatalogue, stock: Stock, issuer: Issuer, lamp: str
) -> None:
    process = make_process(
        auth={"mode": "required", "issuer": issuer.url}, log={"level": "debug", "format": "json"}, recovery=IDLE
    )
    process.start()
    await process.ready()
    ann = Caller(process.http, issuer.token("ann"))
    merchant = Caller(process.http, issuer.token("mia", roles=["merchant"]))
    order = (await ann.place([(lamp, 1)])).json()
    cancelled = await merchant.cancel(order["id"])
    assert cancelled.status_code == 204
    expired = Caller(process.http, issuer.token("ann", expires_in=-3600))
    assert (await expired.get(order["id"])).status_code == 401
    entries = [entry for line in process.log.splitlines() if (entry := json.loads(line))["component"] == "audit"]
    [entry] = entries
    assert {name: entry[name] for name in ("event", "service", "subject", "roles", "target", "before", "after")} == {
        "event": "order cancelled",
        "service": "orders",
        "subject": "mia",
        "roles": ["merchant"],
        "target": f"order {order['id']}",
        "before": {"user": "ann", "status": "confirmed"},
        "after": {"user": "ann", "status": "cancelled"},
    }
    assert entry["request_id"] == cancelled.headers["x-request-id"]
    for caller in (ann, merchant, expired):
        # Neither the token nor its signature.
        assert caller.token.rpartition(".")[2] not in process.log


async def test_the_event_of_a_subject_that_only_looks_like_an_address_says_that_no_mail_is_sent(
    shop: Shop, lamp: str, topic: Topic
) -> None:
    """Somebody who can choose their subject at the issuer could otherwise have mails sent to anybody."""
    for email, nomail in ((None, True), ("ann@shop.example", None)):
        placed = (await shop.sign_in("victim@shop.example", email=email).place([(lamp, 1)])).json()
        assert (placed["user"], placed["email"]) == ("victim@shop.example", email)
        await topic.wait_for(placed["id"], "order.created")
        [message] = topic.messages_of(placed["id"])
        assert json.loads(message.value()).get("nomail") is nomail
        # Its later events are built from the stored order.
        await shop.sign_in("victim@shop.example").cancel(placed["id"])
        await topic.wait_for(placed["id"], "order.created", "order.cancelled")
        assert json.loads(topic.messages_of(placed["id"])[1].value()).get("nomail") is nomail
