"""Interleavings that a shop meets once in a million orders, each forced: what is still on its way when something dies,
and two who do the same at the same moment. More of them are in the files beside this; docs/faults/README.md has the table.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import psutil
import pytest

from market.kit.faults import Faults
from market.kit.lifecycle import Process
from market.local.kafka import apache
from market.local.servers.base import Handle
from market.local.torture.proxy import Proxy
from market.orders import app as orders_app
from market.orders import service as use_cases
from market.orders.config import Config
from market.orders.domain import Status

from .parts import Catalogue, OwnProcess, Service, Stock, Topic, ports, serving, until

# Only whom the test tells to recovers and relays.
CALM = {"after_seconds": 600, "interval_seconds": 600, "relay_interval_seconds": 600}


@pytest.fixture(scope="module")
async def apart(given: Any, migrated: None) -> Any:
    """Configurations on a database where no other test's loops are."""
    name = f"orders_between_{uuid4().hex[:8]}"
    assert await orders_app.migrate(msgspec.convert(given(database=name), Config), []) == 0
    return lambda **more: given(**{"database": name, **more})


@asynccontextmanager
async def pod(given: dict[str, Any], points: Path, *, loops: bool = False) -> AsyncIterator[Service]:
    """A service whose failure points are armed in a folder of its own."""
    points.mkdir(parents=True, exist_ok=True)
    async with serving(given, process=Process(faults=Faults(points)), loops=loops) as made:
        yield made


async def document(service: Service, order_id: Any) -> dict[str, Any]:
    assert service.shop is not None
    found = await service.shop.store._orders.find_one({"_id": UUID(str(order_id))})
    assert found is not None
    return dict(found)


async def intent(service: Service, user: str) -> dict[str, Any]:
    """The user's order, once it is stored."""
    assert service.shop is not None
    collection = service.shop.store._orders
    return dict(await until(lambda: collection.find_one({"user": user}), 10, "intent"))


async def recover_now(service: Service) -> bool:
    """One look of the recovery loop, to which everything that is pending or due is overdue: its clock counts whole seconds."""
    assert service.shop is not None
    return await use_cases.recover(service.shop, after_seconds=-2, retry_seconds=-2)


# -- an answer that is lost on its way


@pytest.mark.parametrize("way", ["orders -> inventory", "orders -> mongodb"])
@pytest.mark.parametrize("fault", ["cut", "blackhole"])
async def test_a_step_whose_answer_is_lost_on_the_wire_is_finished_by_the_same_key(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, mongodb: Any, tmp_path: Path, way: str, fault: str
) -> None:
    """The request went out, and what became of it nobody says: 503 with the order's id, or the true answer; one order in the end."""
    lamp, key, user = catalogue.add(), uuid4().hex, f"wire {uuid4()}"
    await stock.set(lamp, 5)
    to = int(stock.target.rpartition(":")[2]) if "inventory" in way else mongodb.port
    async with Proxy(to=to) as network, AsyncExitStack() as stack:
        settings = apart(recovery=CALM, order_seconds=3)
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
        placing = asyncio.create_task(service.order([(lamp, 2)], user=user, key=key))
        await until((tmp_path / f"{point}.done").exists, 10, point)
        # Every answer is late: the step is done before its answer meets the fault.
        network.delay(0.3)
        await asyncio.sleep(0.75)
        getattr(network, fault)()
        await asyncio.sleep(1.5)
        network.heal()
        first = await placing
        assert first.status_code in (201, 503), first.text
        if first.status_code == 503:
            assert first.headers["retry-after"]
            assert first.json()["order_id"]

        async def finished() -> httpx.Response | None:
            again = await service.order([(lamp, 2)], user=user, key=key)
            return again if again.status_code != 503 else None

        final = await until(finished, 15, "the final answer")
        assert (final.status_code, final.headers["idempotency-replayed"], final.json()["status"]) == (200, "true", "confirmed")
        assert final.json()["id"] == first.json().get("order_id", first.json().get("id"))
        assert network.touched
        assert service.shop is not None
        assert await service.shop.store._orders.count_documents({"user": user}) == 1
    assert await stock.left(lamp) == 3
    assert await stock.reservation(final.json()["id"]) == ("reserved", {lamp: 2})


# -- recovery against others


async def test_a_confirmation_that_loses_against_recovery_is_503_and_leaves_no_goods_behind(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp, user, key = catalogue.add(), f"slow {uuid4()}", uuid4().hex
    await stock.set(lamp, 5)
    async with pod(apart(recovery=CALM), tmp_path) as slow:
        (tmp_path / "orders.before-confirm").write_text("pause 1")
        placing = asyncio.create_task(slow.order([(lamp, 2)], user=user, key=key))
        order = await intent(slow, user)
        await until((tmp_path / "orders.before-confirm.done").exists, 5, "reserved")
        assert await stock.left(lamp) == 3
        assert not await recover_now(slow)
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
    async with pod(apart(recovery=CALM), tmp_path / "a") as service, pod(apart(recovery=CALM), tmp_path / "b") as recovering:
        (tmp_path / "a" / "orders.before-confirm").write_text("pause 0.7")
        (tmp_path / "b" / "orders.recovery-before-reject").write_text("pause 1.5")
        placing = asyncio.create_task(service.order([(lamp, 2)], user=user))
        await until((tmp_path / "a" / "orders.before-confirm.done").exists, 5, "reserved")
        # It reads the order as pending, and rejects only after the confirmation.
        recovery = asyncio.create_task(recover_now(recovering))
        answer = await placing
        assert (answer.status_code, answer.json()["status"]) == (201, "confirmed")
        await recovery
        assert (tmp_path / "b" / "orders.recovery-before-reject.done").exists()
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
        for name in ("a", "b"):
            (tmp_path / name / "orders.recovery-before-reject").write_text("pause 0.5")
            (tmp_path / name / "orders.after-reject-status").write_text("pause 0.5")
            (tmp_path / name / "orders.after-release").write_text("pause 0.5")
        await asyncio.gather(recover_now(one), recover_now(two))
        assert all((tmp_path / name / "orders.recovery-before-reject.done").exists() for name in ("a", "b"))
        assert all((tmp_path / name / "orders.after-release.done").exists() for name in ("a", "b"))
        assert await stock.left(lamp) == 5
        found = await document(one, lost.json()["order_id"])
        assert (found["status"], {"outbox", "release_due"} & found.keys()) == ("rejected", set())
    assert topic.of(lost.json()["order_id"]) == []


async def test_a_recovery_that_dies_between_the_status_and_the_release_is_finished_by_another(
    given: Any, migrated: None, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    name = f"orders_release_{uuid4().hex[:8]}"
    assert await orders_app.migrate(msgspec.convert(given(database=name), Config), []) == 0
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    dying = OwnProcess(given(database=name), tmp_path / "dying")
    try:
        dying.start()
        await dying.ready(40)
        dying.arm("orders.before-confirm", "fail")
        dying.arm("orders.after-reject-status")
        lost = await dying.http.post("/api/order", json={"user": "ada", "items": [{"product_id": lamp, "quantity": 2}]})
        assert lost.status_code == 503
        await dying.died(15)
    finally:
        await dying.close()
    async with serving(given(database=name), loops=False) as idle:
        found = await document(idle, lost.json()["order_id"])
        assert (found["status"], "release_due" in found) == ("rejected", True)
        assert await stock.left(lamp) == 3
    async with serving(given(database=name)) as other:

        async def released() -> bool:
            return "release_due" not in await document(other, lost.json()["order_id"])

        await until(released, 15, "released")
    assert await stock.left(lamp) == 5
    reservation = await stock.reservation(lost.json()["order_id"])
    assert reservation is not None
    assert reservation[0] == "cancelled"


# -- DELETE against others


async def test_of_two_cancellations_that_both_saw_it_confirmed_one_moves_it_and_both_say_so(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with pod(apart(), tmp_path / "a", loops=True) as one, pod(apart(), tmp_path / "b", loops=True) as two:
        order = (await one.order([(lamp, 2)])).json()
        await topic.wait(order["id"], "order.created")
        for name in ("a", "b"):
            (tmp_path / name / "orders.before-cancel-status").write_text("pause 0.5")
            (tmp_path / name / "orders.after-cancel-status").write_text("pause 0.3")
        answers = await asyncio.gather(*(pod.http.delete(f"/api/order/{order['id']}") for pod in (one, two)))
        assert [a.status_code for a in answers] == [204, 204]
        assert all((tmp_path / name / "orders.before-cancel-status.done").exists() for name in ("a", "b"))
        found = await topic.wait(order["id"], "order.created", "order.cancelled")
        await asyncio.sleep(0.5)
    assert [(e.type, e.sequence) for e in topic.events(order["id"])] == [("order.created", 1), ("order.cancelled", 2)]
    assert found[1].data.status == "cancelled"
    assert await stock.left(lamp) == 5


async def test_a_cancellation_that_dies_before_the_status_has_changed_nothing(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    dying = OwnProcess(apart(recovery=CALM), tmp_path)
    try:
        dying.start()
        await dying.ready(40)
        order = (await dying.http.post("/api/order", json={"user": "ada", "items": [{"product_id": lamp, "quantity": 2}]})).json()
        await topic.wait(order["id"], "order.created")
        dying.arm("orders.before-cancel-status")
        with pytest.raises(httpx.TransportError):
            await dying.http.delete(f"/api/order/{order['id']}")
        await dying.died()
    finally:
        await dying.close()
    async with serving(apart(), loops=False) as service:
        assert (await service.http.get(f"/api/order/{order['id']}")).json()["status"] == "confirmed"
        assert await stock.left(lamp) == 3
        assert (await service.http.delete(f"/api/order/{order['id']}")).status_code == 204
    assert await stock.left(lamp) == 5
    await topic.wait(order["id"], "order.created", "order.cancelled")


@pytest.mark.parametrize("point", ["orders.after-intent", "orders.before-reserve", "orders.after-reserve", "orders.before-confirm"])
async def test_a_cancellation_against_a_create_in_flight_has_one_winner_at_every_step(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path, point: str
) -> None:
    lamp, user = catalogue.add(), f"{point} {uuid4()}"
    await stock.set(lamp, 5)
    async with pod(apart(), tmp_path / "a") as slow, pod(apart(), tmp_path / "b") as other:
        (tmp_path / "a" / point).write_text("pause 0.7")
        placing = asyncio.create_task(slow.order([(lamp, 2)], user=user))
        order = await intent(slow, user)
        await until((tmp_path / "a" / f"{point}.done").exists, 5, point)
        assert (await other.http.delete(f"/api/order/{order['_id']}")).status_code == 204
        answer = await placing
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:market:problem:order-cancelled")
        found = await document(slow, order["_id"])
        assert (found["status"], {"outbox", "release_due"} & found.keys()) == ("cancelled", set())
    assert await stock.left(lamp) == 5
    reservation = await stock.reservation(order["_id"])
    assert reservation is not None
    assert reservation[0] == "cancelled"
    assert topic.of(str(order["_id"])) == []


# -- keys and deaths


@pytest.mark.parametrize(
    ("point", "was"),
    [("orders.after-intent", Status.PENDING), ("orders.after-reserve", Status.PENDING), ("orders.before-answer", Status.CONFIRMED)],
)
@pytest.mark.parametrize("product_deleted", [False, True])
async def test_a_key_whose_process_died_is_finished_by_the_repeat_even_without_the_product(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path, point: str, was: Status, product_deleted: bool
) -> None:
    lamp, key = catalogue.add(), uuid4().hex
    await stock.set(lamp, 5)
    body = {"user": f"dead {uuid4()}", "items": [{"product_id": lamp, "quantity": 2}]}
    dying = OwnProcess(apart(recovery=CALM), tmp_path)
    try:
        dying.start()
        await dying.ready(40)
        dying.arm(point)
        with pytest.raises(httpx.TransportError):
            await dying.http.post("/api/order", json=body, headers={"Idempotency-Key": key})
        await dying.died()
    finally:
        await dying.close()
    if product_deleted:
        del catalogue.goods[lamp]
    async with serving(apart(), loops=was is Status.CONFIRMED) as service:
        left = await intent(service, str(body["user"]))
        assert (left["status"], left["key"]) == (was.value, key)
        again = await service.http.post("/api/order", json=body, headers={"Idempotency-Key": key})
        assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
        assert (again.json()["id"], again.json()["status"]) == (str(left["_id"]), "confirmed")
        await topic.wait(again.json()["id"], "order.created")
        assert service.shop is not None
        assert await service.shop.store._orders.count_documents({"user": body["user"]}) == 1
    assert await stock.left(lamp) == 3
    assert await stock.reservation(left["_id"]) == ("reserved", {lamp: 2})


async def test_two_requests_with_one_key_through_two_pods_are_one_order(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    """Both have looked the key up and found nothing before either stores its intent."""
    lamp, key = catalogue.add(), uuid4().hex
    await stock.set(lamp, 5)
    async with pod(apart(), tmp_path / "a") as one, pod(apart(), tmp_path / "b") as two:
        for name in ("a", "b"):
            (tmp_path / name / "orders.before-intent").write_text("pause 0.5")
        answers = await asyncio.gather(*(pod.order([(lamp, 2)], key=key) for pod in (one, two)))
        assert all((tmp_path / name / "orders.before-intent.done").exists() for name in ("a", "b"))
        assert sorted(a.status_code for a in answers) == [200, 201]
        assert len({a.json()["id"] for a in answers}) == 1
        assert service_count(await two.http.get("/api/order", params={"user": "ada", "limit": 1000}), answers[0].json()["id"]) == 1
        await topic.wait(answers[0].json()["id"], "order.created")
    assert await stock.left(lamp) == 3


def service_count(page: httpx.Response, order_id: str) -> int:
    return [o["id"] for o in page.json()["items"]].count(order_id)


# -- a topic that takes nothing


async def test_a_topic_that_is_away_or_full_holds_up_events_and_loses_none(
    apart: Any, catalogue: Catalogue, stock: Stock, server_directory: Path
) -> None:
    if reason := apache.missing():
        pytest.skip(f"the embedded broker makes topics by itself ({reason})")
    broker = Handle(apache.ApacheKafka(next(ports), next(ports), server_directory / "topicless", server_directory / "logs"))
    await asyncio.to_thread(broker.start)
    brokers = f"127.0.0.1:{broker.port}"
    reader = Topic(brokers)
    lamp = catalogue.add()
    await stock.set(lamp, 50)
    try:
        settings = apart(database=f"orders_topic_{uuid4().hex[:8]}")
        settings["kafka"] = {"bootstrap_servers": brokers, "partitions": 0, "delivery_seconds": 1}
        assert await orders_app.migrate(msgspec.convert(settings, Config), []) == 0
        async with serving(settings) as service:
            assert service.shop is not None
            store = service.shop.store
            # There is no topic.
            first = [(await service.order([(lamp, 1)])).json() for _ in range(3)]
            assert {o["status"] for o in first} == {"confirmed"}
            await asyncio.sleep(1.5)
            figures = await store.figures()
            assert (figures.unsent, figures.stuck) == (3, 0)
            assert figures.unsent_age > 1
            made = {**settings, "kafka": {**settings["kafka"], "partitions": 4}}
            assert await orders_app.migrate(msgspec.convert(made, Config), []) == 0
            for order in first:
                await reader.wait(order["id"], "order.created", seconds=30)

            async def none_left() -> bool:
                return (await store.figures()).unsent == 0

            await until(none_left, 20, "outbox empty")
            # Its disk is full: the broker may write no further byte, and ends.
            disk = psutil.Process(broker.pid)
            disk.rlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            second = [(await service.order([(lamp, 1)])).json() for _ in range(3)]
            assert {o["status"] for o in second} == {"confirmed"}
            await asyncio.sleep(1.5)
            figures = await store.figures()
            assert (figures.unsent, figures.stuck) == (3, 0)
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.restart)
            for order in second:
                await reader.wait(order["id"], "order.created", seconds=30)

            await until(none_left, 20, "outbox empty")
    finally:
        await asyncio.to_thread(reader.close)
        await asyncio.to_thread(broker.stop)
    assert await stock.left(lamp) == 44
