"""The products of the sitemap, which are read once for many requests."""

from __future__ import annotations

import asyncio

import pytest

from market.kit.errors import Unavailable
from market.storefront.domain import ListedProduct
from market.storefront.pages.listing import Listing

PRODUCT = ListedProduct(id="a", updated_at="2026-11-28T00:00:00Z")


class Catalogue:
    """Counts how often it is read. `may_answer`: lets a read finish. `fails`: the next read raises."""

    def __init__(self) -> None:
        self.reads = 0
        self.now = 1000.0
        self.fails = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def read(self) -> list[ListedProduct]:
        self.reads += 1
        await self.may_answer.wait()
        if self.fails:
            raise Unavailable("the catalogue is unavailable")
        return [PRODUCT]


async def test_requests_at_the_same_time_and_within_five_minutes_share_one_read() -> None:
    catalogue = Catalogue()
    listing = Listing(catalogue.read, clock=lambda: catalogue.now)
    catalogue.may_answer.clear()
    waiting = [asyncio.create_task(listing.get()) for _ in range(20)]
    await asyncio.sleep(0)
    catalogue.may_answer.set()
    assert await asyncio.gather(*waiting) == [[PRODUCT]] * 20
    catalogue.now += 299
    assert await listing.get() == [PRODUCT]
    assert catalogue.reads == 1
    catalogue.now += 2
    assert await listing.get() == [PRODUCT]
    assert catalogue.reads == 2


async def test_a_failed_read_fails_for_all_who_wait_and_is_not_kept() -> None:
    catalogue = Catalogue()
    listing = Listing(catalogue.read, clock=lambda: catalogue.now)
    catalogue.fails = True
    results = await asyncio.gather(*(listing.get() for _ in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 5
    assert catalogue.reads == 1
    catalogue.fails = False
    assert await listing.get() == [PRODUCT]


async def test_a_request_that_is_cancelled_does_not_stop_the_others() -> None:
    catalogue = Catalogue()
    listing = Listing(catalogue.read, clock=lambda: catalogue.now)
    catalogue.may_answer.clear()
    first, second = asyncio.create_task(listing.get()), asyncio.create_task(listing.get())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    catalogue.may_answer.set()
    assert await second == [PRODUCT]
