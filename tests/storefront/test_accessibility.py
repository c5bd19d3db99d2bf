"""Every page by the machine's eye: axe-core, cut text, the focus, and what a page asks of other hosts.

Each stop of the tour is visited once in each language, and looked at in all sizes and colours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.storefront import accessibility, tour
from tests.storefront.accessibility import set_screen
from tests.storefront.faulty_gateway import FaultyGateway
from tests.storefront.signed_in import signing_in
from tests.storefront.stops import SIGN_IN_STOPS, STOPS
from tests.storefront.test_purchase import new_user
from tests.storefront.tour import Stop, Tour
from tests.storefront.visitor import Shop
from tests.support.browser import CHROMIUM, Tab, page_on_another_origin, tab
from tests.support.ports import free_port

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
async def guide(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tour]:
    products = await tour.create_products(shop, more=16)
    gateway = FaultyGateway(str(shop.stack.urls["graphql"]), shop.http, user=new_user())
    async with gateway.serving(), tour.storefront(shop.stack, gateway) as url:
        async with tab(tmp_path_factory.mktemp("profile")) as page:
            yield Tour(shop, url, page, gateway, {**products, "word": "tour"})


@pytest.mark.parametrize("language", ["en", "ru"])
async def test_no_page_has_a_barrier(guide: Tour, language: str) -> None:
    await follow(guide, STOPS, language)
    # Chromium draws the calendar of a date field from an address of its own, with data:.
    assert {url for url in guide.tab.requests if not url.startswith((guide.url, "data:"))} <= {"about:blank"}


@pytest.mark.parametrize("language", ["en", "ru"])
async def test_no_page_has_a_barrier_where_one_signs_in(guide: Tour, language: str, tmp_path: Path) -> None:
    async with signing_in(tmp_path, gateway_url=guide.gateway.url) as world:
        await follow(replace(guide, url=world.url), SIGN_IN_STOPS, language)


async def follow(guide: Tour, stops: tuple[Stop, ...], language: str) -> None:
    """Visit all stops, at none of which there may be a barrier or a complaint of the browser."""
    await guide.forget("session", "basket", "unknown_order")
    await guide.choose_language(language)
    found: list[str] = []
    for stop in stops:
        await set_screen(guide.tab)
        await guide.visit(stop)
        found += [f"{stop.name}, {text}" for text in await barriers(guide.tab)]
    assert not found, "\n".join(found)
    assert guide.tab.complaints == []


async def barriers(page: Tab) -> list[str]:
    """Return what is wrong with the page that is open, in each size and colour scheme."""
    screens = {"320 px": {"width": 320, "height": 640}, "large text": {"text_size": 32}}
    found = [f"desktop: {text}" for text in await accessibility.find_violations(page)]
    found += [f"desktop: {text}" for text in await accessibility.find_cut_text(page)]
    found += [f"desktop: {text}" for text in await accessibility.find_unseen_focus(page)]
    found += [f"desktop: {text}" for text in await accessibility.find_unsized_pictures(page)]
    await set_screen(page, scheme="dark")
    found += [f"dark: {text}" for text in await accessibility.find_violations(page)]
    for name, screen in screens.items():
        await set_screen(page, **screen)
        found += [f"{name}: {text}" for text in await accessibility.find_cut_text(page)]
        rules = accessibility.SIZE_RULES
        found += [f"{name}: {text}" for text in await accessibility.find_violations(page, rules=rules)]
    return found


FAULTY = """<!doctype html><html lang="en"><head><title>Faults</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
@media (prefers-color-scheme: dark) { body { background: #222; color: #444 } }
.tight { overflow: hidden; width: 24em; max-width: 300px; height: 1.5rem }
a.small { display: inline-block; font-size: 10px; line-height: 10px; height: 10px; outline: none }
</style></head><body><main><h1>Faults</h1><h3>After a gap</h3><img src="x.svg" alt="">
<p style="color: #aaa">Pale</p><p style="width: 500px">Wide</p><p class="tight">Clipped in large letters only</p>
<p><a class="small" href="/a">one</a><a class="small" href="/b">two</a></p></main></body></html>"""


async def test_the_checks_find_the_barriers_of_a_page_that_has_them(guide: Tour) -> None:
    async with page_on_another_origin(free_port(), FAULTY) as url:
        await set_screen(guide.tab)
        await guide.tab.open(url)
        await guide.tab.until("document.readyState === 'complete' && document.title === 'Faults'")
        found = await barriers(guide.tab)
    for expected in (
        "desktop: color-contrast: p:nth-child(4)",
        "desktop: heading-order: h3",
        'desktop: target-size: a[href="/a"]',
        'desktop: no visible focus: <a class="small" href="/a">one</a>',
        f"desktop: a picture without a size: {url}x.svg",
        "dark: color-contrast: h1",
        "320 px: the page is 508 px wide",
        "large text: cut: Clipped in large letters only",
    ):
        assert expected in found
