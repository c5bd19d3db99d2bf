"""GET /api/unfinished-orders and POST /api/unfinished-orders/{id}/retry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from bson import Timestamp

from market.contracts import events
from market.orders.domain import OutboxEntry
from tests.support.issuer import Issuer
from tests.support.ports import free_port
from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .service import IDLE, MakeSettings, Service, get_document, make_overdue, on_new_database, serving
from .stock import Stock
from .test_everybodys_orders import stored_order
from .test_relay_without_kafka import without_kafka
from .topic import Topic

# Work counts as unfinished once it is a little older than this.
AT_ONCE = {**IDLE, "reject_after_seconds": 600, "unfinished_after_seconds": 0.001}
PAST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
async def service_of_module(make_settings: MakeSettings, migrated: None) -> AsyncIterator[Service]:
    """An instance on its own database, in which nothing finishes orders."""
    settings = await on_new_database(make_settings)
    async with serving(settings(recovery=AT_ONCE), background=False) as service:
        yield service


@pytest.fixture
async def own(service_of_module: Service) -> AsyncIterator[Service]:
    yield service_of_module
    await service_of_module.documents.delete_many({})


def entry(order_id: UUID, at: datetime, refused: str | None = None) -> dict[str, Any]:
    found = {"id": events.event_id(order_id, events.CREATED), "type": events.CREATED, "at": at, "request_id": "r"}
    return found if refused is None else {**found, "refused": refused, "refused_at": at}


def pending(seconds: int) -> dict[str, Any]:
    return {**stored_order(0, "pending"), "since": Timestamp(PAST + timedelta(seconds=seconds), 1)}


def release_due(seconds: int) -> dict[str, Any]:
    """A cancelled order whose stock release was postponed an hour ago."""
    at = PAST + timedelta(seconds=seconds)
    return {**stored_order(0, "cancelled"), "cancelled_at": at, "release_due": PAST + timedelta(hours=1)}


def unsent(seconds: int) -> dict[str, Any]:
    document, at = stored_order(0), PAST + timedelta(seconds=seconds)
    return {**document, "unsent_since": at, "outbox": [entry(document["_id"], at)]}


def stuck(seconds: int, reason: str = "MSG_SIZE_TOO_LARGE") -> dict[str, Any]:
    document, at = stored_order(0), PAST + timedelta(seconds=seconds)
    return {**document, "stuck_since": at, "outbox": [entry(document["_id"], at, reason)]}


async def page(service: Service, **parameters: Any) -> Any:
    return (await service.http.get("/api/unfinished-orders", params=parameters)).raise_for_status().json()


async def totals(service: Service) -> dict[str, int]:
    return {kind["kind"]: kind["total"] for kind in (await page(service))["kinds"]}


async def retry(service: Service, order_id: Any) -> int:
    return (await service.http.post(f"/api/unfinished-orders/{order_id}/retry")).status_code


async def test_each_kind_shows_its_orders_since_when_and_why(own: Service) -> None:
    documents = {"pending": pending(1), "release-due": release_due(2), "unsent": unsent(3), "stuck": stuck(4)}
    # The second one of each kind is younger, and the last ones are not overdue.
    others = [pending(11), release_due(12), unsent(13), stuck(14)]
    young = [stored_order(0, "pending"), stored_order(0)]
    now = datetime.now(UTC) + timedelta(hours=1)
    late = {**unsent(0), "unsent_since": now}
    just_cancelled = {**release_due(0), "cancelled_at": now}
    await own.documents.insert_many([*documents.values(), *others, *young, late, just_cancelled])
    found = await page(own)
    assert [(k["kind"], k["total"], k["total_exact"], k["since"]) for k in found["kinds"]] == [
        (kind, 2, True, f"2026-01-01T00:00:0{n}.000Z") for n, kind in enumerate(documents, 1)
    ]
    assert [(i["kind"], i["order_id"], i["since"], i["user"]) for i in found["items"]] == [
        (kind, str(document["_id"]), f"2026-01-01T00:00:{seconds}.000Z", document["user"])
        for n, (kind, first) in enumerate(documents.items())
        for document, seconds in ((first, f"0{n + 1}"), (others[n], f"{n + 11}"))
    ]
    assert [i["status"] for i in found["items"][::2]] == ["pending", "cancelled", "confirmed", "confirmed"]
    assert [i.get("reason") for i in found["items"]] == [*[None] * 6, *["MSG_SIZE_TOO_LARGE"] * 2]
    for kind in documents:
        of_kind = await page(own, kind=kind)
        assert of_kind["items"] == [i for i in found["items"] if i["kind"] == kind]
        assert of_kind["kinds"] == found["kinds"]


async def test_a_walk_returns_each_order_once_also_of_the_same_time(own: Service) -> None:
    documents = [stuck(n // 4) for n in range(11)] + [unsent(0) for _ in range(5)] + [pending(n) for n in range(3)]
    await own.documents.insert_many(documents)
    for limit in (1, 2, 3, 100):
        found: list[str] = []
        parameters: dict[str, Any] = {"limit": limit}
        while True:
            current = await page(own, **parameters)
            found += [item["order_id"] for item in current["items"]]
            assert len(current["items"]) == limit or current["next"] is None
            if current["next"] is None:
                break
            parameters["after"] = current["next"]
        assert sorted(found) == sorted(str(d["_id"]) for d in documents), limit
    first = await page(own, limit=1)
    wrong = await own.http.get("/api/unfinished-orders", params={"kind": "stuck", "after": first["next"]})
    assert wrong.json()["errors"][0]["field"] == "after"


async def test_no_kind_reads_more_than_its_page(own: Service) -> None:
    await own.documents.insert_many([d for n in range(100) for d in (stored_order(n), unsent(n), stuck(n))])
    for field in ("unsent_since", "stuck_since"):
        pipeline = [{"$match": {field: {"$gt": PAST - timedelta(days=1)}}}, {"$sort": {field: 1}}, {"$limit": 3}]
        plan = await own.documents.database.command(
            "explain",
            {"aggregate": "orders", "pipeline": pipeline, "cursor": {}},
            verbosity="executionStats",
            codec_options=own.documents.codec_options,
        )
        assert "COLLSCAN" not in str(plan)
        assert "'SORT'" not in str(plan)


async def test_events_are_unsent_while_kafka_is_away_and_gone_afterwards(
    make_settings: MakeSettings, migrated: None, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    new = await on_new_database(make_settings)
    recovery = {**IDLE, "unfinished_after_seconds": 0.001}
    async with serving(without_kafka(new(recovery=recovery), 0.3), background=False) as without:
        order = (await without.place([(lamp, 1)])).json()

        async def is_shown() -> bool:
            return (await totals(without))["unsent"] == 1

        await until(is_shown, what="the unsent event is shown")
        [item] = (await page(without))["items"]
        assert (item["order_id"], item["kind"], item["status"]) == (order["id"], "unsent", "confirmed")
        await until(lambda: without.deps.relay.idle, what="the event is no longer in flight")
    async with serving(new(recovery={**recovery, "lease_seconds": 0.1}), background=False) as service:
        # No relay runs: the event is published because of the request.
        async def is_published() -> bool:
            assert await retry(service, order["id"]) == 202
            return (await totals(service))["unsent"] == 0

        await until(is_published, what="the event is published")
        assert (await page(service))["items"] == []
        assert "outbox" not in await get_document(service, order["id"])


async def test_a_stuck_event_is_published_when_its_order_is_retried(own: Service) -> None:
    document = stuck(0, "the topic does not exist")
    await own.documents.insert_one(document)
    assert (await totals(own))["stuck"] == 1
    for _ in range(2):
        assert await retry(own, document["_id"]) == 202

    async def is_published() -> bool:
        return "outbox" not in await get_document(own, document["_id"])

    await until(is_published, what="the event is published")
    assert await totals(own) == {"pending": 0, "release-due": 0, "unsent": 0, "stuck": 0}


async def test_retrying_rejects_an_overdue_order_and_leaves_one_that_is_being_placed(own: Service) -> None:
    overdue, young = stored_order(0, "pending"), stored_order(1, "pending")
    await own.documents.insert_many([{**d, "since": Timestamp(0, 0)} for d in (overdue, young)])
    await make_overdue(own.documents, {"_id": overdue["_id"]})
    for _ in range(2):
        for document in (overdue, young):
            assert await retry(own, document["_id"]) == 202
    rejected = await get_document(own, overdue["_id"])
    assert (rejected["status"], rejected["reason"]) == ("rejected", "expired")
    assert "release_due" not in rejected
    assert (await get_document(own, young["_id"]))["status"] == "pending"


async def test_retrying_releases_the_stock(own: Service, catalogue: FakeCatalogue, stock: Stock) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    order = (await own.place([(lamp, 2)])).json()
    change = {"status": "cancelled", "cancelled_at": PAST, "release_due": PAST}
    await own.documents.update_one({"_id": UUID(order["id"])}, {"$set": change})
    assert (await totals(own))["release-due"] == 1
    assert await stock.available(lamp) == 3
    for _ in range(2):
        assert await retry(own, order["id"]) == 202
        assert await stock.available(lamp) == 5
    assert (await totals(own))["release-due"] == 0


async def test_without_inventory_retrying_says_that_the_work_was_not_finished(
    make_settings: MakeSettings, migrated: None
) -> None:
    new = await on_new_database(make_settings)
    inventory = {"target": f"127.0.0.1:{free_port()}", "timeout_seconds": 1}
    async with serving(new(recovery=AT_ONCE, inventory=inventory), background=False) as service:
        document = release_due(0)
        await service.documents.insert_one(document)
        response = await service.http.post(f"/api/unfinished-orders/{document['_id']}/retry")
        assert response.status_code == 503
        assert response.json()["detail"] == "the work was not finished: inventory or MongoDB is unavailable"
        assert (await totals(service))["release-due"] == 1


async def test_an_order_that_does_not_exist_is_not_found(own: Service) -> None:
    for order_id in (uuid4(), "lamp"):
        assert await retry(own, order_id) == 404


async def test_only_operators_may_retry(make_settings: MakeSettings, migrated: None, issuer: Issuer) -> None:
    new = await on_new_database(make_settings)
    settings = new(auth={"mode": "required", "issuer": issuer.url}, recovery=AT_ONCE)
    async with serving(settings, background=False) as service:
        document = stuck(0)
        await service.documents.insert_one(document)
        path = f"/api/unfinished-orders/{document['_id']}/retry"
        for roles, expected in (((), 403), (("merchant",), 403), (("operator",), 202)):
            token = issuer.token("somebody", roles=roles)
            response = await service.http.post(path, headers={"Authorization": f"Bearer {token}"})
            assert response.status_code == expected
        assert (await service.http.post(path)).status_code == 401


async def test_what_cannot_be_read_as_an_order_is_listed(own: Service) -> None:
    document = {**stuck(0), "total": "a lot", "user": 5}
    await own.documents.insert_one(document)
    [item] = (await page(own))["items"]
    assert (item["order_id"], item["user"]) == (str(document["_id"]), "5")
    assert await retry(own, document["_id"]) == 503


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"outbox": {"0": {"refused": "too large"}}}, None),
        ({"outbox": {"refused": "too large"}}, None),
        ({"outbox": "too large"}, None),
        ({"outbox": None}, None),
        ({"outbox": ["?", None, 5, [{"refused": "nested"}], {"refused": "too large"}]}, "too large"),
        ({"outbox": [{"refused": ["too", "large"]}]}, "['too', 'large']"),
        ({"outbox": [{"refused": None}, {}]}, None),
        ({"status": ["confirmed"], "user": {"name": "ada"}}, "MSG_SIZE_TOO_LARGE"),
        ({"cancelled_at": [PAST], "rejected_at": "yesterday"}, "MSG_SIZE_TOO_LARGE"),
    ],
    ids=str,
)
async def test_an_order_with_unreadable_fields_is_listed_with_what_can_be_read(
    own: Service, change: dict[str, Any], reason: str | None
) -> None:
    documents = [{**stuck(0), **change}, {**unsent(1), **change}, {**pending(2), **change, "status": "pending"}]
    await own.documents.insert_many([*documents, stuck(3)])
    found = await page(own)
    assert [(i["kind"], i["order_id"], i.get("reason")) for i in found["items"][:-1]] == [
        ("pending", str(documents[2]["_id"]), None),
        ("unsent", str(documents[1]["_id"]), None),
        ("stuck", str(documents[0]["_id"]), reason),
    ]
    assert found["items"][-1]["reason"] == "MSG_SIZE_TOO_LARGE"


async def test_an_order_whose_end_is_not_a_date_is_listed(own: Service) -> None:
    document = {**release_due(0), "cancelled_at": "yesterday"}
    await own.documents.insert_one(document)
    found = await page(own)
    since = {kind["kind"]: kind["since"] for kind in found["kinds"]}
    assert since["release-due"] == "2026-01-01T01:00:00.000Z"
    assert [(i["order_id"], i["since"]) for i in found["items"]] == [(str(document["_id"]), since["release-due"])]


async def test_retrying_does_not_change_an_order_with_an_unknown_status(own: Service) -> None:
    document = {**stuck(0), "status": "shipped"}
    await own.documents.insert_one(document)
    before = await get_document(own, document["_id"])
    assert await retry(own, document["_id"]) == 202
    assert await get_document(own, document["_id"]) == before


async def test_an_event_that_is_queued_again_is_no_longer_stuck(own: Service) -> None:
    alone, with_another = stuck(0), stuck(1)
    await own.documents.insert_many([alone, with_another])
    outbox, now = own.deps.relay.outbox, own.deps.clock()
    cancelled = OutboxEntry(events.event_id(with_another["_id"], events.CANCELLED), events.CANCELLED, now)
    assert await outbox.requeue(alone["_id"], None, now)
    assert await outbox.requeue(with_another["_id"], cancelled, now)
    for document in (alone, with_another):
        order = await own.deps.orders.get_latest(document["_id"])
        assert order is not None
        assert [e.rejection for e in order.outbox] == [None] * len(order.outbox)
        assert order.outbox
