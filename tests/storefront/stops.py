"""The stops of the tour: every page of the shop in every state that looks different.

`STOPS` is the one list of pages. The tests of accessibility and the screenshots of the documentation both follow it, so
a new page needs a stop here or in `desk_stops.py`, and nothing else.
"""

from __future__ import annotations

from uuid import uuid4

from tests.storefront.desk_stops import DESK_STOPS
from tests.storefront.tour import Stop, Tour, at


async def _second_page(tour: Tour) -> None:
    await tour.go("/?q=tour")
    await tour.leave("document.querySelector('a[rel=next]').click()")


async def _fill_basket(tour: Tour) -> None:
    await tour.forget("basket")
    for product in ("teapot", "long", "plain"):
        await tour.put_into_basket(tour.products[product], 2)
    # A product that does not exist any more.
    await tour.put_into_basket(str(uuid4()))
    await tour.go("/basket")


async def _two_currencies(tour: Tour) -> None:
    await tour.forget("basket")
    await tour.put_into_basket(tour.products["teapot"])
    await tour.put_into_basket(tour.products["euro"])
    await tour.go("/basket")


async def _wrong_quantity(tour: Tour) -> None:
    await tour.put_into_basket(tour.products["teapot"])
    await tour.go("/basket")
    await tour.send("/basket", "set", quantity="1.5")


async def _checkout(tour: Tour, *products: str) -> None:
    await tour.forget("basket")
    for product in products or ("teapot", "long"):
        await tour.put_into_basket(tour.products[product], 2)
    await tour.go("/checkout")


async def _mistakes(tour: Tour) -> None:
    await _checkout(tour)
    await tour.send("/checkout", name="", email="ann")


async def _changed(tour: Tour) -> None:
    await _checkout(tour, "teapot", "scarce")
    await tour.send("/checkout", **tour.buyer, line=f"{tour.products['teapot']}:2:1.00")


async def _nothing_left(tour: Tour) -> None:
    await _checkout(tour, "teapot")
    await tour.send("/checkout", **tour.buyer, line=f"{tour.products['sold_out']}:1:5.00")


async def _pending(tour: Tour) -> None:
    await _checkout(tour, "teapot")
    await tour.send("/checkout", **tour.buyer)


async def _placed(tour: Tour) -> None:
    await tour.forget("unknown_order")
    await _checkout(tour)
    await tour.send("/checkout", **tour.buyer)
    tour.order_path = await tour.tab.evaluate("location.pathname")


async def _key_used(tour: Tour) -> None:
    await _checkout(tour, "teapot")
    key = uuid4().hex
    await tour.send("/checkout", **tour.buyer, key=key)
    await _checkout(tour, "teapot")
    await tour.send("/checkout", **{**tour.buyer, "email": "other@example.com"}, key=key)


async def _cancelled(tour: Tour) -> None:
    await tour.go(tour.order_path)
    if await tour.tab.evaluate("document.querySelector('main form') !== null"):
        await tour.send(f"{tour.order_path}/cancellation")


async def _old_form(tour: Tour) -> None:
    await tour.go(f"/products/{tour.products['teapot']}")
    await tour.send("/basket", "add", form_token="old")


async def _empty_basket(tour: Tour) -> None:
    await tour.forget("basket")
    await tour.go("/basket")


STOPS = (
    Stop("catalogue", at("/"), ".grid"),
    Stop("search", at("/?q={word}"), ".grid"),
    Stop("search-next-page", _second_page, "a.secondary"),
    Stop("search-similar", at("/?q=tuor+teapott"), "p.hint[role=status]"),
    Stop("search-nothing", at("/?q=zzqxwvk"), "main p a"),
    Stop("product", at("/products/{teapot}"), ".product-picture img"),
    Stop("product-long-words", at("/products/{long}")),
    Stop("product-without-picture", at("/products/{plain}"), ".product-picture .no-picture"),
    Stop("product-sold-out", at("/products/{sold_out}"), ".sold-out"),
    Stop("product-unknown", at("/products/{teapot}"), ".unknown", off=frozenset({"inventory"})),
    Stop("catalogue-unknown", at("/?q=tour"), ".unknown", off=frozenset({"inventory"})),
    Stop("basket-empty", _empty_basket),
    Stop("basket", _fill_basket, ".line .changed"),
    Stop("basket-during-an-outage", at("/basket"), ".box.warn", off=frozenset({"products"})),
    Stop("basket-mistake", _wrong_quantity, "[role=alert]"),
    Stop("basket-two-currencies", _two_currencies, ".box.warn"),
    Stop("checkout", _checkout, "#email"),
    Stop("checkout-mistakes", _mistakes, ".box.bad"),
    Stop("checkout-changed", _changed, ".box.warn"),
    Stop("checkout-nothing-left", _nothing_left, ".box.warn"),
    Stop("pending", _pending, "[data-pending]", off=frozenset({"orders"})),
    Stop("order-placed", _placed, ".box.good"),
    Stop("key-used", _key_used, "main a[href='/orders']"),
    Stop("orders", at("/orders"), ".orders"),
    Stop("orders-none", at("/orders?name=nobody"), "main p"),
    Stop("order-cancelled", _cancelled, ".status.cancelled"),
    Stop("not-found", at("/products/nothing"), ".message"),
    Stop("wrong-address", at("/?after=x"), ".message"),
    Stop("old-form", _old_form, ".message"),
    Stop("outage", at("/"), ".message", off=frozenset({"products"})),
    *DESK_STOPS,
)


async def _sign_in(tour: Tour) -> None:
    await tour.go("/sign-in?next=/")
    if await tour.tab.evaluate("document.querySelector('button[value=mia]') !== null"):
        await tour.leave("document.querySelector('button[value=mia]').click()")


async def _sent_without_sign_in(tour: Tour) -> None:
    await _sign_in(tour)
    await _checkout(tour)
    await tour.forget("access", "renewal")
    await tour.send("/checkout")


# Where `auth.mode` is `required`. Those after the second stop are for the person who has signed in there.
SIGN_IN_STOPS = (
    Stop("sign-in-failed", at("/sign-in/callback?error=access_denied"), "main a[href^='/sign-in']"),
    Stop("signed-in", _sign_in, ".role"),
    Stop("signed-in-checkout", _checkout, "form[action='/checkout']:not(:has(#email))"),
    Stop("signed-in-orders", at("/orders")),
    Stop("sign-in-needed", _sent_without_sign_in, "main a[href='/sign-in?next=/checkout']"),
)
