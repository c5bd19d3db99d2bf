"""Forced interleavings that would otherwise be rare: lost responses, recovery concurrent with others, a missing topic.

There are more in test_interleavings_of_*.py; docs/chaos/README.md lists them all.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from confluent_kafka.admin import AdminClient
from market_dev.chaos.proxy import Proxy
from market_dev.stack.kafka import apache

from market.contracts import events
from market.orders import service as use_cases
from market.orders.metrics import RECOVERED
from tests.support.servers import KafkaHandle, kafka_server
from tests.support.waiting import PATIENCE, until

from .catalogue import FakeCatalogue
from .gates import Gate, arm, gate_at, gated_service, open_together, reached
from .reconciliation import is_published
from .service import (
    IDLE,
    NOTHING_OVERDUE,
    MakeSettings,
    OrdersProcess,
    Service,
    get_document,
    make_overdue,
    migrate,
    on_new_database,
    recover_all,
    serving,
    wait_for_intent,
)
from .stock import Stock
from .topic import Topic

# Lost responses.


@pytest.mark.parametrize("upstream", ["inventory", "mongodb"])
@pytest.mark.parametrize("fault", ["disconnect", "blackhole"])
async def test_a_step_whose_response_is_lost_is_completed_by_a_repeated_key(
    isolated_settings: MakeSettings,
    catalogue: FakeCatalogue,
    stock: Stock,
    mongodb: Any,
    documents: Any,
    tmp_path: Path,
    upstream: str,
    fault: str,
) -> None:
    """The first response is either 503 with the order's id or the result; in the end there is exactly one order."""
    lamp, key, user = catalogue.add(), uuid4().hex, f"wire {uuid4()}"
    await stock.set(lamp, 5)
    port = int(stock.target.rpartition(":")[2]) if upstream == "inventory" else mongodb.port
    async with Proxy(upstream=port) as network, AsyncExitStack() as stack:
        settings = isolated_settings(recovery=IDLE, create_order_timeout_seconds=3)
        isolated_documents = documents.database.client[settings["mongodb"]["database"]].orders
        if upstream == "inventory":
            settings["inventory"] = {"target": f"127.0.0.1:{network.port}", "timeout_seconds": 1}
            point = "orders.before-reserve"
        else:
            settings["mongodb"] = {
                **settings["mongodb"],
                "uri": mongodb.uri.replace(str(mongodb.port), str(network.port)),
                "timeout_seconds": 1,
            }
            point = "orders.before-confirm"
        service = await stack.enter_async_context(gated_service(settings, tmp_path))
        arm(service, point, "pause 0.3")

        async def place() -> httpx.Response:
            # Such short timeouts may expire before the point is reached; a request with a key can be repeated.
            while True:
                response = await service.place([(lamp, 2)], user=user, key=key)
                if reached(service, point):
                    return response
                assert response.status_code == 503, response.text

        placing = asyncio.create_task(place())
        await until(lambda: reached(service, point), what=point)
        # Responses are delayed, so that the step is done, but its response not delivered, when the fault begins.
        network.delay(0.3)
        await asyncio.sleep(0.75)
        getattr(network, fault)()
        await asyncio.sleep(1.5)
        network.heal()
        first = await placing
        assert first.status_code in (200, 201, 503), first.text
        if first.status_code == 503:
            assert first.headers["retry-after"]
            assert first.json()["order_id"]

        async def repeat() -> httpx.Response | None:
            repeated = await service.place([(lamp, 2)], user=user, key=key)
            return repeated if repeated.status_code != 503 else None

        final: Any = await until(repeat, what="the final response")
        assert (final.status_code, final.headers["idempotency-replayed"]) == (200, "true")
        assert final.json()["status"] == "confirmed"
        assert final.json()["id"] == first.json().get("order_id", first.json().get("id"))
        assert network.affected
        assert isolated_documents.count_documents({"user": user}) == 1
    assert await stock.available(lamp) == 3
    assert await stock.reservation(final.json()["id"]) == ("reserved", {lamp: 2})


# Recovery, concurrent with requests and with itself.


async def test_a_confirmation_after_recovery_rejected_the_order_gives_503_and_holds_no_stock(
    isolated_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp, user, key = catalogue.add(), f"slow {uuid4()}", uuid4().hex
    await stock.set(lamp, 5)
    async with gated_service(isolated_settings(recovery=IDLE), tmp_path) as slow:
        confirming = gate_at(slow, "orders.before-confirm")
        placing = asyncio.create_task(slow.place([(lamp, 2)], user=user, key=key))
        await confirming.wait_until_reached()
        order = await wait_for_intent(slow, user)
        assert await stock.available(lamp) == 3
        assert not await recover_all(slow)
        confirming.open()
        response = await placing
        assert response.status_code == 503
        assert response.json()["order_id"] == str(order["_id"])
        assert await stock.available(lamp) == 5
        assert topic.messages_of(str(order["_id"])) == []
        stored = await get_document(slow, order["_id"])
        assert (stored["status"], {"outbox", "release_due", "key"} & stored.keys()) == ("rejected", set())
        # The key is free again: the same request places a new order.
        repeated = await slow.place([(lamp, 2)], user=user, key=key)
        assert (repeated.status_code, repeated.json()["id"] == str(order["_id"])) == (201, False)
    assert await stock.available(lamp) == 3


async def test_recovery_does_not_change_an_order_that_is_confirmed_first(
    isolated_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp, user = catalogue.add(), f"quick {uuid4()}"
    await stock.set(lamp, 5)
    async with (
        gated_service(isolated_settings(recovery=IDLE), tmp_path / "a") as service,
        gated_service(isolated_settings(recovery=IDLE), tmp_path / "b") as recovering,
    ):
        confirming = gate_at(service, "orders.before-confirm")
        rejecting = gate_at(recovering, "orders.recovery-before-reject")
        placing = asyncio.create_task(service.place([(lamp, 2)], user=user))
        await confirming.wait_until_reached()
        rejected_before = RECOVERED.labels("rejected")._value.get()
        # Recovery reads the order as pending, and tries to reject it only after the confirmation.
        recovery = asyncio.create_task(recover_all(recovering))
        await rejecting.wait_until_reached()
        confirming.open()
        response = await placing
        assert (response.status_code, response.json()["status"]) == (201, "confirmed")
        rejecting.open()
        await recovery
        assert (await get_document(service, response.json()["id"]))["status"] == "confirmed"
        assert RECOVERED.labels("rejected")._value.get() == rejected_before
        await topic.wait_for(response.json()["id"], "order.created")
    assert await stock.reservation(response.json()["id"]) == ("reserved", {lamp: 2})


async def test_concurrent_recovery_in_two_instances_rejects_and_releases_once(
    isolated_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with (
        gated_service(isolated_settings(recovery=IDLE), tmp_path / "a") as one,
        gated_service(isolated_settings(recovery=IDLE), tmp_path / "b") as two,
    ):
        arm(one, "orders.before-confirm", "fail")
        response = await one.place([(lamp, 2)])
        assert (response.status_code, await stock.available(lamp)) == (503, 3)
        order_id = response.json()["order_id"]
        # Both read the order as pending before either rejects it, and both reject it before either releases the stock.
        points = ("orders.recovery-before-reject", "orders.after-reject-status", "orders.after-release")
        gates = [[gate_at(instance, point) for instance in (one, two)] for point in points]
        rejected_before = RECOVERED.labels("rejected")._value.get()
        recovering = [asyncio.create_task(recover_all(instance)) for instance in (one, two)]
        for gates_at_point in gates:
            await open_together(gates_at_point)
        await asyncio.gather(*recovering)
        assert RECOVERED.labels("rejected")._value.get() == rejected_before + 1
        assert await stock.available(lamp) == 5
        stored = await get_document(one, order_id)
        assert (stored["status"], {"outbox", "release_due"} & stored.keys()) == ("rejected", set())
    assert topic.messages_of(order_id) == []


async def place_until_reserving(
    service: Service, product_id: str, user: str
) -> tuple[asyncio.Task[httpx.Response], dict[str, Any], Gate]:
    """Place an order for two units. Return the request, the stored order, and the gate that blocks its reservation."""
    reserving = gate_at(service, "orders.before-reserve")
    placing = asyncio.create_task(service.place([(product_id, 2)], user=user))
    await reserving.wait_until_reached()
    return placing, await wait_for_intent(service, user), reserving


@pytest.mark.parametrize("restocked", [False, True])
async def test_a_reservation_after_the_order_was_rejected_is_rejected(
    isolated_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, tmp_path: Path, restocked: bool
) -> None:
    lamp, user = catalogue.add(), f"late {uuid4()}"
    await stock.set(lamp, 2)
    async with gated_service(isolated_settings(), tmp_path) as service:
        placing, intent, reserving = await place_until_reserving(service, lamp, user)
        pending = await service.deps.orders.get_latest(intent["_id"])
        assert pending is not None
        rejected = await use_cases.advance(service.deps, pending, overdue=True)
        await use_cases.advance(service.deps, rejected)
        if restocked:
            await stock.set(lamp, 10)
        reserving.open()
        response = await placing
        assert response.status_code == 503
        assert response.json()["order_id"] == str(intent["_id"])
        assert response.json()["detail"] == (
            "the order could not be processed in time and was rejected; place it again"
        )
        assert await stock.available(lamp) == (10 if restocked else 2)
        assert (await get_document(service, intent["_id"]))["status"] == "rejected"


async def test_an_order_whose_reservation_another_program_has_cancelled_is_rejected_for_that_reason(
    isolated_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, tmp_path: Path
) -> None:
    lamp, user = catalogue.add(), f"user-{uuid4()}"
    await stock.set(lamp, 2)
    async with gated_service(isolated_settings(), tmp_path) as service:
        placing, intent, reserving = await place_until_reserving(service, lamp, user)
        await stock.release(str(intent["_id"]))
        reserving.open()
        response = await placing
        assert (response.status_code, response.json()["order_id"]) == (503, str(intent["_id"]))
        assert response.json()["detail"] == (
            "inventory rejected the order's reservation, so the order was rejected; place it again"
        )
        assert await stock.available(lamp) == 2


async def test_a_recovery_that_crashes_between_rejection_and_release_is_completed_by_another_instance(
    make_settings: MakeSettings, migrated: None, catalogue: FakeCatalogue, stock: Stock, documents: Any, tmp_path: Path
) -> None:
    new_settings = await on_new_database(make_settings)
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    crashing = OrdersProcess(new_settings(recovery=NOTHING_OVERDUE), tmp_path / "crashing")
    try:
        crashing.start()
        await crashing.ready()
        crashing.arm("orders.before-confirm", "fail")
        crashing.arm("orders.after-reject-status")
        response = await crashing.place([(lamp, 2)])
        assert response.status_code == 503
        order_id = response.json()["order_id"]
        await make_overdue(documents.database.client[crashing.config["mongodb"]["database"]].orders, {})
        await crashing.exited()
    finally:
        await crashing.close()
    async with serving(new_settings(), background=False) as idle:
        stored = await get_document(idle, order_id)
        assert (stored["status"], "release_due" in stored) == ("rejected", True)
        assert await stock.available(lamp) == 3
    async with serving(new_settings()) as other:

        async def is_released() -> bool:
            return "release_due" not in await get_document(other, order_id)

        await until(is_released, what="released")
    assert await stock.available(lamp) == 5
    reservation = await stock.reservation(order_id)
    assert reservation is not None
    assert reservation[0] == "cancelled"


# A topic that accepts no events.


async def start_broker_or_skip(server_directory: Path, name: str) -> KafkaHandle:
    """Start Apache Kafka. Skip the test if this machine cannot: the embedded broker creates topics automatically."""
    if reason := apache.why_unavailable():
        pytest.skip(f"the embedded broker creates topics automatically ({reason})")
    broker = KafkaHandle(kafka_server(server_directory / name, server_directory / "logs", "apache"))
    await asyncio.to_thread(broker.start, 2 * PATIENCE)
    return broker


async def test_a_missing_topic_or_a_full_disk_delays_events_and_loses_none(
    isolated_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, server_directory: Path
) -> None:
    broker = await start_broker_or_skip(server_directory, "kafka-without-topic")
    bootstrap_servers = broker.bootstrap_servers
    reader = Topic(bootstrap_servers)
    lamp = catalogue.add()
    await stock.set(lamp, 50)
    try:
        settings = isolated_settings(database=f"orders_topic_{uuid4().hex[:8]}", recovery={"reject_after_seconds": 600})
        settings["kafka"] = {"bootstrap_servers": bootstrap_servers, "partitions": 0, "delivery_seconds": 1}
        await migrate(settings)
        async with serving(settings) as service:
            due = service.deps.due
            # The topic does not exist.
            first = [(await service.place([(lamp, 1)])).json() for _ in range(3)]
            assert {o["status"] for o in first} == {"confirmed"}
            await asyncio.sleep(1.5)
            statistics = await due.statistics()
            assert (statistics.unsent, statistics.with_stuck_events) == (3, 0)
            assert statistics.oldest_unsent_seconds > 1
            await migrate({**settings, "kafka": {**settings["kafka"], "partitions": 4}})
            for order in first:
                await reader.wait_for(order["id"], "order.created")

            async def is_outbox_empty() -> bool:
                return (await due.statistics()).unsent == 0

            await until(is_outbox_empty, what="outbox empty")
            # As with a full disk, the broker cannot write another byte, and exits.
            psutil.Process(broker.pid).rlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            second = [(await service.place([(lamp, 1)])).json() for _ in range(3)]
            assert {o["status"] for o in second} == {"confirmed"}
            await asyncio.sleep(1.5)
            statistics = await due.statistics()
            assert (statistics.unsent, statistics.with_stuck_events) == (3, 0)
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.restart, 2 * PATIENCE)
            for order in second:
                await reader.wait_for(order["id"], "order.created")

            await until(is_outbox_empty, what="outbox empty")
    finally:
        await asyncio.to_thread(reader.close)
        await asyncio.to_thread(broker.stop)
    assert await stock.available(lamp) == 44


async def test_a_deleted_topic_is_created_again_within_seconds(
    isolated_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, server_directory: Path
) -> None:
    broker = await start_broker_or_skip(server_directory, "kafka-topic-deleted")
    bootstrap_servers = broker.bootstrap_servers
    lamp = catalogue.add()
    await stock.set(lamp, 50)
    reader: Topic | None = None
    try:
        settings = isolated_settings(
            database=f"orders_topic_{uuid4().hex[:8]}",
            recovery={"reject_after_seconds": 600, "lease_seconds": 600, "relay_interval_seconds": 0.5},
            kafka={"bootstrap_servers": bootstrap_servers, "partitions": 3, "delivery_seconds": 2},
        )
        await migrate(settings)
        async with serving(settings) as service:
            order = (await service.place([(lamp, 1)])).json()
            await until(lambda: is_published(service, order["id"]), what="published")
            admin = AdminClient({"bootstrap.servers": bootstrap_servers})
            await asyncio.to_thread(admin.delete_topics([events.TOPIC])[events.TOPIC].result, PATIENCE)
            order_ids = [(await service.place([(lamp, 1)])).json()["id"] for _ in range(3)]
            for order_id in order_ids:
                await until(lambda order_id=order_id: is_published(service, order_id), what="published")
            reader = Topic(bootstrap_servers)
            for order_id in order_ids:
                await reader.wait_for(order_id, "order.created")
        assert len(admin.list_topics(events.TOPIC, timeout=PATIENCE).topics[events.TOPIC].partitions) == 3
    finally:
        if reader is not None:
            await asyncio.to_thread(reader.close)
        await asyncio.to_thread(broker.stop)
