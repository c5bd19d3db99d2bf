"""An idempotency key belongs to the user, also while an earlier version runs, for which it belongs to all users."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import pytest

from tests.support import earlier_version
from tests.support.repeats import assert_created_once, repeated_while_unknown

from .catalogue import FakeCatalogue
from .gates import arm, gate_at, gated_service
from .service import IDLE, MakeSettings, OrdersProcess, Service, Settings, on_new_database
from .stock import Stock


@pytest.fixture
async def own_service(make_settings: MakeSettings, migrated: None, tmp_path: Path) -> AsyncIterator[Service]:
    """An instance with a database of its own and without background tasks, whose failure points can be armed."""
    settings = await on_new_database(make_settings)
    async with gated_service(settings(recovery=IDLE), tmp_path) as service:
        yield service


async def test_equal_keys_of_different_users_place_an_order_each(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp, key = catalogue.add(), "order-1"
    await stock.set(lamp, 50)
    users = [f"user-{n}" for n in range(8)]
    responses = await asyncio.gather(*(own_service.place([(lamp, 1)], user=user, key=key) for user in users * 3))
    assert sorted(r.status_code for r in responses) == [200] * 16 + [201] * 8
    placed = {r.json()["user"]: r.json()["id"] for r in responses}
    assert {(r.json()["user"], r.json()["id"]) for r in responses} == set(placed.items())
    assert len(set(placed.values())) == 8
    assert await stock.available(lamp) == 42
    assert (await own_service.place([(lamp, 2)], user="user-3", key=key)).status_code == 422


async def test_a_key_waits_while_another_users_pending_order_has_it(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    """If that order were rejected, an earlier version could give the key to a second order of this user."""
    lamp, key = catalogue.add(), "order-1"
    await stock.set(lamp, 5)
    gate = gate_at(own_service, "orders.after-intent")
    first = asyncio.create_task(own_service.place([(lamp, 1)], user="ada", key=key))
    await gate.wait_until_reached()
    second = asyncio.create_task(own_service.place([(lamp, 1)], user="bea", key=key))
    await asyncio.sleep(0.5)
    assert not second.done()
    gate.open()
    assert [(await first).status_code, (await second).status_code] == [201, 201]
    # The field of earlier versions belongs to the order that was first.
    [ada] = await own_service.documents.find({"user": "ada"}).to_list()
    [bea] = await own_service.documents.find({"user": "bea"}).to_list()
    assert (ada["idempotency_key"], ada["key"], bea["idempotency_key"]) == (key, key, key)
    assert "key" not in bea


async def test_an_order_that_an_earlier_version_placed_is_found_by_its_user(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp, key = catalogue.add(), "order-1"
    await stock.set(lamp, 5)
    placed = await own_service.place([(lamp, 1)], user="ada", key=key)
    await own_service.documents.update_one({"user": "ada"}, {"$unset": {"idempotency_key": 1}})
    repeated = await own_service.place([(lamp, 1)], user="ada", key=key)
    assert (repeated.status_code, repeated.json()) == (200, placed.json())
    other = await own_service.place([(lamp, 1)], user="bea", key=key)
    assert (other.status_code, other.json()["user"]) == (201, "bea")


async def test_an_order_that_an_earlier_version_rejected_frees_its_key(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp, key = catalogue.add(), "order-1"
    await stock.set(lamp, 5)
    arm(own_service, "orders.after-intent", "fail")
    assert (await own_service.place([(lamp, 1)], user="ada", key=key)).status_code == 503
    # What the earlier version's rejection does.
    rejection = {"$set": {"status": "rejected"}, "$unset": {"key": 1, "digest": 1, "since": 1}}
    await own_service.documents.update_one({"user": "ada"}, rejection)
    placed = await own_service.place([(lamp, 2)], user="ada", key=key)
    repeated = await own_service.place([(lamp, 2)], user="ada", key=key)
    assert (placed.status_code, repeated.status_code) == (201, 200)
    assert repeated.json()["id"] == placed.json()["id"]


class Versions(NamedTuple):
    """The earlier version and this one, on one database."""

    earlier: OrdersProcess
    present: OrdersProcess


def earlier_settings(settings: Settings) -> Settings:
    """Return the settings with the names that they had in the earlier version."""
    earlier = {**settings, "recovery": {**settings["recovery"]}}
    earlier["order_seconds"] = earlier.pop("create_order_timeout_seconds")
    earlier["other_seconds"] = earlier.pop("default_timeout_seconds")
    earlier["recovery"]["after_seconds"] = earlier["recovery"].pop("reject_after_seconds")
    return earlier


def run_migrate(process: OrdersProcess, environment: dict[str, str]) -> None:
    """Run the command `migrate` of a version."""
    command = [sys.executable, "-m", "market.orders", "migrate"]
    env = {**os.environ, "CONFIG_PATH": str(process.config_file), **environment}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture
async def versions(make_settings: MakeSettings, migrated: None, tmp_path: Path) -> AsyncIterator[Versions]:
    """Both versions, each of which has migrated the database before the other one, and after it."""
    environment = await asyncio.to_thread(earlier_version.unpack, earlier_version.GLOBAL_KEYS, tmp_path / "earlier")
    database = f"orders_{uuid4().hex[:8]}"
    settings = [make_settings(database=database, recovery=IDLE) for _ in range(2)]
    earlier = OrdersProcess(earlier_settings(settings[0]), tmp_path / "a", env=environment)
    present = OrdersProcess(settings[1], tmp_path / "b")
    try:
        for process, source in ((earlier, environment), (present, {}), (earlier, environment)):
            await asyncio.to_thread(run_migrate, process, source)
        for process in (earlier, present):
            process.start()
            await process.ready()
        yield Versions(earlier, present)
    finally:
        await earlier.close()
        await present.close()


def order_ids(responses: list[httpx.Response]) -> set[str]:
    return {r.json()["id"] for r in responses if r.status_code in (200, 201)}


async def test_two_versions_at_once_place_one_order_per_user_and_key(
    versions: Versions, catalogue: FakeCatalogue, stock: Stock, mongodb: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 1000)
    requests = [(user, f"{user}-{n}") for user in ("ada", "bea", "cleo") for n in range(10)]
    random.Random(7).shuffle(requests)

    async def place(version: OrdersProcess, user: str, key: str) -> list[httpx.Response]:
        return await repeated_while_unknown(lambda: version.place([(lamp, 1)], user=user, key=key))

    # Each request is sent twice to each version, all at once, and again afterwards.
    calls = [(user, key, version) for user, key in requests for version in versions * 2]
    random.Random(8).shuffle(calls)
    responses = await asyncio.gather(*(place(version, user, key) for user, key, version in calls))
    for user, key in requests:
        own = [r for r, call in zip(responses, calls, strict=True) if call[:2] == (user, key)]
        own += [await place(version, user, key) for version in versions]
        assert_created_once(own)
        assert {r[-1].json()["user"] for r in own} == {user}
    assert await stock.available(lamp) == 1000 - len(requests)


async def test_equal_keys_of_two_users_place_one_order_each_while_an_earlier_version_runs(
    versions: Versions, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 1000)
    users, keys = ("ada", "bea", "cleo"), [f"order-{n}" for n in range(10)]
    calls = [(user, key, version) for user in users for key in keys for version in versions * 2]
    random.Random(9).shuffle(calls)

    async def place(user: str, key: str, version: OrdersProcess) -> httpx.Response:
        return (await repeated_while_unknown(lambda: version.place([(lamp, 1)], user=user, key=key)))[-1]

    responses = await asyncio.gather(*(place(*call) for call in calls))
    for response, (user, key, version) in zip(responses, calls, strict=True):
        if version is versions.present:
            assert response.status_code in (200, 201), (user, key, response.text)
        elif response.status_code not in (200, 201):
            # As always, the earlier version lets only one user have a key.
            assert response.json()["type"] == "urn:market:problem:idempotency-key-reused"
    for user in users:
        for key in keys:
            own = [r for r, call in zip(responses, calls, strict=True) if call[:2] == (user, key)]
            own.append(await place(user, key, versions.present))
            assert own[-1].status_code == 200
            assert len(order_ids(own)) == 1
    assert await stock.available(lamp) == 1000 - len(users) * len(keys)


async def test_a_rejection_by_either_version_frees_the_key_for_both(
    versions: Versions, catalogue: FakeCatalogue, stock: Stock
) -> None:
    for rejecting, placing in (versions, versions[::-1]):
        lamp, key = catalogue.add(), f"key-{uuid4()}"
        await stock.set(lamp, 1)
        # The order is stored by one version, and rejected by the other.
        placing.arm("orders.after-intent", "fail")
        unknown = await placing.place([(lamp, 2)], key=key)
        assert unknown.status_code == 503
        assert (await rejecting.place([(lamp, 2)], key=key)).json()["type"] == "urn:market:problem:out-of-stock"
        await stock.set(lamp, 5)
        placed = await placing.place([(lamp, 2)], key=key)
        repeated = [await version.place([(lamp, 2)], key=key) for version in versions]
        assert [r.status_code for r in (placed, *repeated)] == [201, 200, 200]
        assert len(order_ids([placed, *repeated])) == 1
        assert UUID(placed.json()["id"]) != UUID(unknown.json()["order_id"])
        assert await stock.available(lamp) == 3
