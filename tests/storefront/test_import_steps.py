"""The steps of an import against a gateway in memory: its responses, and what the import makes of them."""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

import pytest
from msgspec import convert

from market.kit.errors import Forbidden, Malformed, NotFound, Overloaded, Problem, TooLarge, Unavailable
from market.storefront.clients import FieldRefused, GatewayClient, GraphQLError
from market.storefront.config import Imports, Pages
from market.storefront.importing import files, job, shop, steps
from market.storefront.importing.importer import Importer
from market.storefront.importing.job import Job
from market.storefront.importing.online_retail import InvalidFile
from market.storefront.session.cookies import CookieJar
from tests.storefront.importing import codes, retail

JAR = CookieJar(("s" * 40,))
SESSION = "session-of-ann"
PACE = steps.Pace(60, 4)


@dataclass
class Gateway:
    """A shop in memory. `lose`: so many changes are done, but their responses are lost. `calls`: the documents."""

    products: dict[str, dict[str, Any]] = field(default_factory=dict)
    lose: int = 0
    problem: Problem | None = None
    calls: list[str] = field(default_factory=list)
    in_flight: int = 0
    max_in_flight: int = 0

    @property
    def client(self) -> GatewayClient:
        return cast(GatewayClient, self)

    async def execute_all(self, document: str, variables: dict[str, Any], result_type: Any) -> dict[str, Any]:
        await self._begin("find")
        phrases = [variables[f"q{i}"].strip('"') for i in range(shop.LOOKUP_SIZE)]
        found = [[p for p in self.products.values() if phrase in p["description"]] for phrase in phrases]
        return {f"p{i}": convert({"items": items}, result_type) for i, items in enumerate(found)}

    async def execute(self, document: str, variables: dict[str, Any], result_type: Any) -> Any:
        name = next(n for n in ("createProduct", "updateProduct", "product(") if n in document)
        await self._begin(name)
        if name == "product(":
            return convert(self._existing(variables["id"]), result_type)
        fields = variables["input"]
        if name == "createProduct":
            product = self.products.setdefault(variables["key"], {**fields, "id": variables["key"], "version": 1})
        else:
            product = self._existing(fields["id"])
            if product["version"] != fields["expectedVersion"]:
                raise FieldRefused(GraphQLError("modified", extensions={"code": "PRECONDITION_FAILED"}))
            product |= {**fields, "version": product["version"] + 1}
        if self.lose:
            self.lose -= 1
            raise Unavailable("the response was lost", retry_after=7)
        return convert(product, result_type)

    def _existing(self, product_id: str) -> dict[str, Any]:
        if product_id not in self.products:
            raise NotFound("product", product_id)
        return self.products[product_id]

    async def _begin(self, name: str) -> None:
        self.calls.append(name)
        if self.problem is not None:
            raise self.problem
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1


def new_job(*lines: str) -> Job:
    return Job.of(files.read(retail(*lines), "a.csv", max_rows=1000), "a.csv", SESSION)


async def compared(gateway: Gateway, *lines: str) -> Job:
    work = new_job(*lines)
    assert await steps.compare(gateway.client, work, PACE) is None
    return work


async def test_a_change_whose_response_was_lost_is_recognised_when_it_is_repeated() -> None:
    gateway = Gateway()
    await steps.run(gateway.client, await compared(gateway, "1;MUG;1;1.00"), PACE)
    work = await compared(gateway, "1;JUG;1;1.00")
    gateway.lose = 1
    interruption = await steps.run(gateway.client, work, PACE)
    assert interruption is not None
    assert interruption.retry_after == 7
    assert (work.items[0].outcome, work.is_done) == (None, False)
    assert await steps.run(gateway.client, work, PACE) is None
    assert work.items[0].outcome == "changed"
    assert [(p["name"], p["version"]) for p in gateway.products.values()] == [("JUG", 2)]


async def test_a_creation_whose_response_was_lost_is_recognised_when_it_is_repeated() -> None:
    gateway = Gateway(lose=1)
    work = await compared(gateway, "1;MUG;1;1.00")
    assert await steps.run(gateway.client, work, PACE) is not None
    assert await steps.run(gateway.client, work, PACE) is None
    assert work.items[0].outcome == "created"
    assert gateway.calls.count("createProduct") == 1


async def test_a_shop_that_is_busy_interrupts_the_step_and_says_when_to_go_on() -> None:
    gateway = Gateway(problem=Overloaded("busy", retry_after=30))
    work = new_job(*codes("w", 100))
    interruption = await steps.compare(gateway.client, work, PACE)
    assert interruption is not None
    assert interruption.retry_after == 30
    # Each of the four has tried once.
    assert len(gateway.calls) <= 4
    assert work.progress == (0, 100)


async def test_a_refusal_of_the_caller_ends_the_step() -> None:
    gateway = Gateway(problem=Forbidden("not yours"))
    with pytest.raises(Forbidden):
        await steps.compare(gateway.client, new_job("1;MUG;1;1.00"), PACE)


async def test_what_the_shop_refuses_is_reported_with_its_field_and_rule_and_is_not_tried_again() -> None:
    gateway = Gateway()
    work = await compared(gateway, "1;MUG;1;1.00")
    errors = [{"field": "name", "reason": "must not be MUG"}]
    gateway.execute = _raiser(FieldRefused(GraphQLError("bad", extensions={"code": "BAD_INPUT", "errors": errors})))  # type: ignore[method-assign]
    assert await steps.run(gateway.client, work, PACE) is None
    item = work.items[0]
    assert (item.outcome, item.field, item.reason) == ("refused", "name", "must not be MUG")
    assert work.is_done


def _raiser(error: Exception) -> Callable[..., Any]:
    async def execute(*_: object, **__: object) -> None:
        raise error

    return execute


async def test_a_step_ends_with_its_time_and_makes_no_more_calls_at_once_than_permitted() -> None:
    gateway = Gateway()
    work = new_job(*codes("w", 200))
    ticks = iter(range(1000))
    await steps.compare(gateway.client, work, steps.Pace(7, 3, clock=lambda: float(next(ticks))))
    done, total = work.progress
    assert 0 < done < total
    await steps.compare(gateway.client, work, steps.Pace(60, 3))
    assert work.is_compared
    assert gateway.max_in_flight == 3


async def test_a_search_that_finds_other_codes_too_takes_the_product_with_the_code() -> None:
    gateway = Gateway()
    await steps.run(gateway.client, await compared(gateway, "10;MUG;1;1.00", "10 B;BOWL;1;1.00"), PACE)
    gateway.products["other"] = {**gateway.products["import:10"], "id": "other", "description": "Stock code 10. Old"}
    work = await compared(gateway, "10;MUG;1;1.00")
    assert (work.items[0].plan, work.items[0].product_id) == ("keep", "import:10")


async def test_the_time_left_follows_from_the_speed_so_far() -> None:
    work = new_job(*codes("w", 40), "x;invalid;many;1")
    assert work.seconds_left is None
    for item in work.items[:10]:
        item.plan = "create"
    work.seconds = 5.0
    assert work.seconds_left == 15


def test_a_job_that_is_packed_is_the_same_when_it_is_unpacked_and_too_large_ones_are_refused() -> None:
    work = new_job(*codes("w", 20), "x;invalid;many;1")
    text = job.pack(work, JAR, 100_000)
    assert job.unpack(text, JAR, SESSION) == work
    # Something is left for what the comparison finds.
    with pytest.raises(TooLarge):
        job.pack(work, JAR, len(text))


async def test_an_import_of_as_many_rows_as_permitted_fits_into_a_form_from_beginning_to_end() -> None:
    words = string.ascii_uppercase
    names = [" ".join(random.Random(i).sample(words, 15)) for i in range(20_000)]
    lines = [f"{i}A;{name} FRÜHSTÜCK;{i % 900 + 1};{i % 90 + 1}.95" for i, name in enumerate(names)]
    limits = Imports()
    data = retail(*lines)
    assert len(data) < limits.max_file_bytes
    work = Job.of(files.read(data, "a.csv", max_rows=limits.max_rows), "a.csv", SESSION)
    largest = Pages(port=1).max_body_bytes - 16_384
    first = len(job.pack(work, JAR, largest))
    outcomes: tuple[job.Outcome | None, ...] = (None, "changed")
    for outcome in outcomes:
        for item in work.items:
            before = {"name": f"{uuid4()} {'Ж' * 200}", "description": f"{uuid4()} {'Ж' * 200}", "price": "1.00"}
            item.compare(str(uuid4()), 1, before)
            item.outcome = outcome
        text = job.pack(work, JAR, largest)
        assert len(text) > first
    assert job.unpack(text, JAR, SESSION) == work


def test_what_is_shown_of_earlier_values_is_shortened() -> None:
    item = new_job("1;MUG;1;1.00").items[0]
    item.compare("id", 1, {"name": "x" * 101, "description": "y" * 100, "image_url": None})
    assert item.before == {"name": "x" * 99 + "…", "description": "y" * 100, "image_url": None}


def test_a_job_of_another_session_another_shop_or_another_purpose_is_refused() -> None:
    text = job.pack(new_job("1;MUG;1;1.00"), JAR, 100_000)
    with pytest.raises(Malformed):
        job.unpack(text, JAR, "session-of-ben")
    with pytest.raises(Malformed):
        job.unpack(text, CookieJar(("t" * 40,)), SESSION)
    with pytest.raises(Malformed):
        job.unpack(JAR.sign("session", b"e30="), JAR, SESSION)


def test_a_file_with_more_rows_than_permitted_is_refused() -> None:
    with pytest.raises(InvalidFile, match="has 3 products, and must have at most 2"):
        files.read(retail(*codes("w", 3)), "a.csv", max_rows=2)
    invalid = [f"{i};X;many;1" for i in range(4)]
    with pytest.raises(InvalidFile, match="has more than 2 invalid rows"):
        files.read(retail(*invalid), "a.csv", max_rows=2)


async def test_requests_with_a_job_wait_for_each_other_and_then_are_refused() -> None:
    importer = Importer(
        Gateway().client, JAR, Imports(max_in_flight=1), max_body_bytes=1_048_576, max_wait_seconds=0.01
    )
    async with importer.admit():
        with pytest.raises(Overloaded):
            async with importer.admit():
                pass
    async with importer.admit():
        pass
