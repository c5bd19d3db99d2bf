"""Interleavings that a shop meets once in a million orders, each forced: what is still on its way when something dies,
and two who do the same at the same moment. More of them are in the files beside this; docs/chaos/README.md has the
table.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import psutil
import pytest
from market_dev.chaos.proxy import Proxy
from market_dev.stack.kafka import apache

from market.orders import app as orders_app
from market.orders.config import Config
from tests.support.ports import free_port
from tests.support.servers import ServerHandle
from tests.support.waiting import PATIENCE, until

from .parts import Catalogue, OrdersProcess, Stock, Topic, serving
from .pods import CALM, UNHURRIED, document, hold, intent, overdue, pod, recover_now, together


@pytest.fixture(scope="module")
async def apart(given: Any, migrated: None) -> Any:
    """Configurations on a database where no other test's loops are."""
    name = f"orders_between_{uuid4().hex[:8]}"
    assert await orders_app.migrate(msgspec.convert(given(database=name), Config), []) == 0
    return lambda **more: given(**{"database": name, **more})


# -- an answer that is lost on its way


@pytest.mark.parametrize("way", ["orders -> inventory", "orders -> mongodb"])
@pytest.mark.parametrize("fault", ["disconnect", "blackhole"])
async def test_a_step_whose_answer_is_lost_on_the_wire_is_finished_by_the_same_key(
    apart: Any, catalogue: Catalogue, stock: Stock, mongodb: Any, documents: Any, tmp_path: Path, way: str, fault: str
) -> None:
    """The request went out, and what became of it nobody says: 503 with the order's id, or the true answer; one order
    in the end."""
    lamp, key, user = catalogue.add(), uuid4().hex, f"wire {uuid4()}"
    await stock.set(lamp, 5)
    to = int(stock.target.rpartition(":")[2]) if "inventory" in way else mongodb.port
    async with Proxy(upstream=to) as network, AsyncExitStack() as stack:
        settings = apart(recovery=CALM, order_seconds=3)
        orders = documents.database.client[settings["mongodb"]["database"]].orders
        if "inventory" in way:
            settings["inventory"] = {"target": f"127.0.0.1:{network.port}", "timeout_seconds": 1}
            point = "orders.before-reserve"
        else:
            settings["mongodb"] = {
                **settings["mongodb"],
                "uri": mongodb.uri.replace(str(mongodb.port), str(network.port)),
                "timeout_seconds": 1,
            }
            point = "orders.before-confirm"
        service = await stack.enter_async_context(pod(settings, tmp_path))
        (tmp_path / point).write_text("pause 0.3")
        reached = (tmp_path / f"{point}.done").exists

        async def place() -> httpx.Response:
            # So short a time may be over before the point: whoever has a key asks again.
            while True:
                answer = await service.order([(lamp, 2)], user=user, key=key)
                if reached():
                    return answer
                assert answer.status_code == 503, answer.text

        placing = asyncio.create_task(place())
        await until(reached, what=point)
        # Every answer is late: the step is done before its answer meets the fault.
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

        async def finished() -> httpx.Response | None:
            again = await service.order([(lamp, 2)], user=user, key=key)
            return again if again.status_code != 503 else None

        final = await until(finished, what="the final answer")
        assert (final.status_code, final.headers["idempotency-replayed"], final.json()["status"]) == (
            200,
            "true",
            "confirmed",
        )
        assert final.json()["id"] == first.json().get("order_id", first.json().get("id"))
        assert network.affected
        assert orders.count_documents({"user": user}) == 1
    assert await stock.left(lamp) == 3
    assert await stock.reservation(final.json()["id"]) == ("reserved", {lamp: 2})


# -- recovery against others


async def test_a_confirmation_that_loses_against_recovery_is_503_and_leaves_no_goods_behind(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp, user, key = catalogue.add(), f"slow {uuid4()}", uuid4().hex
    await stock.set(lamp, 5)
    async with pod(apart(recovery=CALM), tmp_path) as slow:
        reserved = hold(slow, "orders.before-confirm")
        placing = asyncio.create_task(slow.order([(lamp, 2)], user=user, key=key))
        await reserved.reached()
        order = await intent(slow, user)
        assert await stock.left(lamp) == 3
        assert not await recover_now(slow)
        reserved.open()
        answer = await placing
        assert answer.status_code == 503
        assert answer.json()["order_id"] == str(order["_id"])
        assert await stock.left(lamp) == 5
        assert topic.of(str(order["_id"])) == []
        found = await document(slow, order["_id"])
        assert (found["status"], {"outbox", "release_due", "key"} & found.keys()) == ("rejected", set())
        # The key is free: a new attempt.
        again = await slow.order([(lamp, 2)], user=user, key=key)
        assert (again.status_code, again.json()["id"] == str(order["_id"])) == (201, False)
    assert await stock.left(lamp) == 3


async def test_a_confirmation_that_comes_first_is_left_alone_by_recovery(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp, user = catalogue.add(), f"quick {uuid4()}"
    await stock.set(lamp, 5)
    async with (
        pod(apart(recovery=CALM), tmp_path / "a") as service,
        pod(apart(recovery=CALM), tmp_path / "b") as recovering,
    ):
        reserved, rejecting = hold(service, "orders.before-confirm"), hold(recovering, "orders.recovery-before-reject")
        placing = asyncio.create_task(service.order([(lamp, 2)], user=user))
        await reserved.reached()
        # It reads the order as pending, and rejects only after the confirmation.
        recovery = asyncio.create_task(recover_now(recovering))
        await rejecting.reached()
        reserved.open()
        answer = await placing
        assert (answer.status_code, answer.json()["status"]) == (201, "confirmed")
        rejecting.open()
        await recovery
        assert (await document(service, answer.json()["id"]))["status"] == "confirmed"
        await topic.wait(answer.json()["id"], "order.created")
    assert await stock.reservation(answer.json()["id"]) == ("reserved", {lamp: 2})


async def test_recovery_in_two_pods_at_the_same_moment_rejects_once_and_gives_back_once(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with pod(apart(recovery=CALM), tmp_path / "a") as one, pod(apart(recovery=CALM), tmp_path / "b") as two:
        (tmp_path / "a" / "orders.before-confirm").write_text("fail")
        lost = await one.order([(lamp, 2)])
        assert (lost.status_code, await stock.left(lamp)) == (503, 3)
        # Both have read it as pending before either goes on, and both have it as rejected before either gives back.
        points = ("orders.recovery-before-reject", "orders.after-reject-status", "orders.after-release")
        gates = [[hold(pod, point) for pod in (one, two)] for point in points]
        recovering = [asyncio.create_task(recover_now(pod)) for pod in (one, two)]
        for both in gates:
            await together(both)
        await asyncio.gather(*recovering)
        assert await stock.left(lamp) == 5
        found = await document(one, lost.json()["order_id"])
        assert (found["status"], {"outbox", "release_due"} & found.keys()) == ("rejected", set())
    assert topic.of(lost.json()["order_id"]) == []


async def test_a_recovery_that_dies_between_the_status_and_the_release_is_finished_by_another(
    given: Any, migrated: None, catalogue: Catalogue, stock: Stock, documents: Any, tmp_path: Path
) -> None:
    name = f"orders_release_{uuid4().hex[:8]}"
    assert await orders_app.migrate(msgspec.convert(given(database=name), Config), []) == 0
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    dying = OrdersProcess(given(database=name, recovery=UNHURRIED), tmp_path / "dying")
    try:
        dying.start()
        await dying.ready()
        dying.arm("orders.before-confirm", "fail")
        dying.arm("orders.after-reject-status")
        lost = await dying.http.post("/api/order", json={"user": "ada", "items": [{"product_id": lamp, "quantity": 2}]})
        assert lost.status_code == 503
        await overdue(documents.database.client[name].orders, {})
        await dying.exited()
    finally:
        await dying.close()
    async with serving(given(database=name), loops=False) as idle:
        found = await document(idle, lost.json()["order_id"])
        assert (found["status"], "release_due" in found) == ("rejected", True)
        assert await stock.left(lamp) == 3
    async with serving(given(database=name)) as other:

        async def released() -> bool:
            return "release_due" not in await document(other, lost.json()["order_id"])

        await until(released, what="released")
    assert await stock.left(lamp) == 5
    reservation = await stock.reservation(lost.json()["order_id"])
    assert reservation is not None
    assert reservation[0] == "cancelled"


# -- a topic that takes nothing


async def test_a_topic_that_is_away_or_full_holds_up_events_and_loses_none(
    apart: Any, catalogue: Catalogue, stock: Stock, server_directory: Path
) -> None:
    if reason := apache.why_unavailable():
        pytest.skip(f"the embedded broker makes topics by itself ({reason})")
    broker = ServerHandle(
        apache.ApacheKafka(free_port(), free_port(), server_directory / "topicless", server_directory / "logs")
    )
    await asyncio.to_thread(broker.start, 2 * PATIENCE)
    brokers = f"127.0.0.1:{broker.port}"
    reader = Topic(brokers)
    lamp = catalogue.add()
    await stock.set(lamp, 50)
    try:
        settings = apart(database=f"orders_topic_{uuid4().hex[:8]}", recovery={"after_seconds": 600})
        settings["kafka"] = {"bootstrap_servers": brokers, "partitions": 0, "delivery_seconds": 1}
        assert await orders_app.migrate(msgspec.convert(settings, Config), []) == 0
        async with serving(settings) as service:
            assert service.deps is not None
            store = service.deps.orders
            # There is no topic.
            first = [(await service.order([(lamp, 1)])).json() for _ in range(3)]
            assert {o["status"] for o in first} == {"confirmed"}
            await asyncio.sleep(1.5)
            figures = await store.statistics()
            assert (figures.unsent, figures.stuck) == (3, 0)
            assert figures.oldest_unsent_seconds > 1
            made = {**settings, "kafka": {**settings["kafka"], "partitions": 4}}
            assert await orders_app.migrate(msgspec.convert(made, Config), []) == 0
            for order in first:
                await reader.wait(order["id"], "order.created")

            async def none_left() -> bool:
                return (await store.statistics()).unsent == 0

            await until(none_left, what="outbox empty")
            # Its disk is full: the broker may write no further byte, and ends.
            disk = psutil.Process(broker.pid)
            disk.rlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            second = [(await service.order([(lamp, 1)])).json() for _ in range(3)]
            assert {o["status"] for o in second} == {"confirmed"}
            await asyncio.sleep(1.5)
            figures = await store.statistics()
            assert (figures.unsent, figures.stuck) == (3, 0)
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.restart, 2 * PATIENCE)
            for order in second:
                await reader.wait(order["id"], "order.created")

            await until(none_left, what="outbox empty")
    finally:
        await asyncio.to_thread(reader.close)
        await asyncio.to_thread(broker.stop)
    assert await stock.left(lamp) == 44
