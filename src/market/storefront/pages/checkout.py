"""The checkout: the page on which a buyer reviews and confirms an order, and the page that waits for its outcome.

The form of the checkout page has the order's idempotency key and the prices that the buyer sees. However often it is
sent (by a double click, a reload, the back button, a retry), one order is placed, at the prices that were shown. If
that is impossible, nothing is ordered, and the page is shown again with a new key and the differences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from uuid import uuid4

import msgspec
from starlette.responses import Response

from market.contracts import money
from market.kit.errors import BadInput
from market.storefront import service
from market.storefront.basket.basket import parse_product_id
from market.storefront.domain import (
    MAX_LINES,
    Draft,
    DraftLine,
    KeyUsed,
    Line,
    OrderChanged,
    OutcomeUnknown,
    PlacedAndCancelled,
    PricedLine,
    RequestRefused,
    Totals,
)
from market.storefront.pages.basket import parse_quantity
from market.storefront.pages.visit import Visit, redirect
from market.storefront.session.session import MAX_EMAIL, MAX_NAME

# The cookie with an order whose outcome is not known yet, and how long browsers keep it.
_UNKNOWN = "unknown_order"
_UNKNOWN_MAX_AGE_SECONDS = 24 * 3600
_MAX_KEY = 64


@dataclass(frozen=True)
class Change:
    """How a line differs from what the buyer saw: the price or quantity before, if it has changed."""

    product_id: str
    product_name: str | None
    price_before: str | None = None
    currency_before: str | None = None
    quantity_before: int | None = None
    quantity: int = 0


@dataclass(frozen=True)
class Mistakes:
    """What the buyer has to correct. others: messages of the shop about other fields."""

    name: bool = False
    email: bool = False
    others: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.name or self.email or bool(self.others)


@dataclass
class Checkout:
    """What the checkout page shows. `must_confirm_again`: prices or stock have changed, so nothing was ordered."""

    lines: tuple[PricedLine, ...]
    name: str
    email: str
    must_confirm_again: bool = False
    changes: tuple[Change, ...] = ()
    total_before: tuple[str, Decimal] | None = None
    mistakes: Mistakes = field(default_factory=Mistakes)
    key: str = field(default_factory=lambda: uuid4().hex)

    @property
    def totals(self) -> Totals:
        """The totals of the lines, by currency."""
        return Totals.of(self.lines)


async def get_checkout(visit: Visit) -> Response:
    """Show the checkout page for the basket."""
    if _unknown(visit) is not None:
        # Placing another order now could mean ordering the same twice.
        return redirect("/checkout/pending")
    priced = await service.price_lines(visit.deps, visit.basket.lines)
    lines = tuple(line for line in priced if line.product is not None)
    if not lines:
        return redirect("/basket")
    deleted = tuple(Change(line.product_id, None) for line in priced if line.product is None)
    checkout = Checkout(lines, visit.session.name, visit.session.email, changes=deleted)
    return visit.page("checkout.html", checkout=checkout)


async def place_order(visit: Visit) -> Response:
    """Place the order that the buyer has confirmed."""
    draft = _read_draft(visit)
    mistakes = _find_mistakes(visit, draft)
    if mistakes:
        return await _correct(visit, draft, mistakes)
    return await _place(visit, draft, service.PLACING_SECONDS)


async def get_pending(visit: Visit) -> Response:
    """Find out whether an order was placed, by sending it again with the same key."""
    draft = _unknown(visit)
    if draft is None:
        return redirect("/orders")
    if visit.query("wait"):
        return _still_unknown(visit)
    return await _place(visit, draft, service.REPEATING_SECONDS)


async def forget_pending(visit: Visit) -> Response:
    """Forget an order whose outcome is not known. It may have been placed nevertheless."""
    response = redirect("/orders")
    visit.site.cookies.remove(response, _UNKNOWN)
    return response


async def _place(visit: Visit, draft: Draft, seconds: float) -> Response:
    try:
        order = await service.place_order(visit.deps, draft, seconds=seconds)
    except OutcomeUnknown:
        if visit.request.method == "GET":
            return _still_unknown(visit)
        response = redirect("/checkout/pending?wait=1")
        visit.site.cookies.write(response, _UNKNOWN, draft, max_age=_UNKNOWN_MAX_AGE_SECONDS)
        return response
    except OrderChanged as e:
        response = await _confirm_again(visit, draft, e)
    except PlacedAndCancelled as e:
        response = redirect(f"/orders/{e.order_id}")
    except KeyUsed:
        response = visit.page("key_used.html", status=409)
    except RequestRefused as e:
        response = await _correct(visit, draft, _mistakes_of(e))
    else:
        if visit.session.placed != draft.key:
            visit.basket = visit.basket.without({line.product_id: line.quantity for line in draft.lines})
        remembered = {"name": draft.user or "", "email": draft.email or "", "placed": draft.key}
        visit.session = msgspec.structs.replace(visit.session, **remembered)
        response = redirect(f"/orders/{order.id}?placed=1")
    # In all of these cases the outcome is known.
    visit.site.cookies.remove(response, _UNKNOWN)
    return response


def _still_unknown(visit: Visit) -> Response:
    return visit.page("pending.html", status=202)


def _unknown(visit: Visit) -> Draft | None:
    """Return the visitor's order whose outcome is not known; None if there is none, or if it is somebody else's."""
    draft = visit.site.cookies.read(visit.request, _UNKNOWN, Draft, max_age=_UNKNOWN_MAX_AGE_SECONDS)
    return draft if draft is not None and draft.subject == _subject(visit) else None


def _subject(visit: Visit) -> str | None:
    return None if visit.person is None else visit.person.subject


def _read_draft(visit: Visit) -> Draft:
    """Parse the form of the checkout page. Raises BadInput if it is not one."""
    lines = tuple(_read_line(text) for text in visit.values("line"))
    key, currency = visit.value("key"), visit.value("currency")
    if not 1 <= len(lines) <= MAX_LINES:
        raise BadInput("line", f"must be present 1 to {MAX_LINES} times")
    if not (key.isascii() and key.isalnum() and len(key) <= _MAX_KEY):
        raise BadInput("key", "must be the key of a checkout page")
    if not (currency.isascii() and currency.isalpha() and len(currency) == 3):
        raise BadInput("currency", "must be a currency code")
    if not visit.site.is_open:
        return Draft(key=key, lines=lines, currency=currency, subject=_subject(visit))
    return Draft(key=key, lines=lines, currency=currency, user=visit.value("name"), email=visit.value("email"))


def _read_line(text: str) -> DraftLine:
    product_id, _, rest = text.partition(":")
    quantity_text, _, price = rest.partition(":")
    quantity = parse_quantity(quantity_text)
    if quantity is None:
        raise BadInput("line", "must have a quantity")
    try:
        money.parse_price(price)
    except ValueError as e:
        raise BadInput("line", f"the price {e}") from None
    return DraftLine(parse_product_id(product_id), quantity, price)


def _find_mistakes(visit: Visit, draft: Draft) -> Mistakes:
    if not visit.site.is_open:
        return Mistakes()
    name, email = draft.user or "", draft.email or ""
    at = email.rpartition("@")
    return Mistakes(
        name=not (1 <= len(name) <= MAX_NAME and name.isprintable()),
        email=not (at[0] and at[2] and len(email) <= MAX_EMAIL and email.isprintable() and " " not in email),
    )


def _mistakes_of(refusal: RequestRefused) -> Mistakes:
    fields = {name for name, _ in refusal.fields}
    name, email = "input.user" in fields, "input.email" in fields
    return Mistakes(name, email, () if name or email else (str(refusal),))


async def _correct(visit: Visit, draft: Draft, mistakes: Mistakes) -> Response:
    """Show the page again, with what the buyer has to correct and current prices."""
    checkout = await _compare(visit, draft, {})
    checkout.mistakes = mistakes
    return _show(visit, checkout, status=400)


async def _confirm_again(visit: Visit, draft: Draft, changed: OrderChanged) -> Response:
    """Show the page again with the differences. Quantities that are no longer available are reduced."""
    checkout = await _compare(visit, draft, changed.available)
    checkout.must_confirm_again = True
    for change in checkout.changes:
        if change.quantity_before is not None and visit.basket.quantity(change.product_id) > change.quantity:
            visit.basket = visit.basket.put(change.product_id, change.quantity)
    return _show(visit, checkout, status=409)


def _show(visit: Visit, checkout: Checkout, *, status: int) -> Response:
    if not checkout.lines:
        return visit.page("nothing_left.html", status=status, checkout=checkout)
    return visit.page("checkout.html", status=status, checkout=checkout)


async def _compare(visit: Visit, draft: Draft, available: dict[str, int]) -> Checkout:
    """Return a checkout page with the draft's lines at current prices, and how they differ from what the buyer saw.

    available: the available quantity of each product with a shortage, by product id
    """
    lines_now = (
        Line(line.product_id, min(line.quantity, available.get(line.product_id, line.quantity))) for line in draft.lines
    )
    priced = await service.price_lines(visit.deps, lines_now)
    changes = []
    for before, now in zip(draft.lines, priced, strict=True):
        product = now.product
        if product is None:
            changes.append(Change(before.product_id, None, quantity_before=before.quantity))
            continue
        same_price = (Decimal(product.price), product.currency) == (Decimal(before.price), draft.currency)
        if same_price and now.quantity == before.quantity:
            continue
        changes.append(
            Change(
                before.product_id,
                product.name,
                None if same_price else before.price,
                None if same_price else draft.currency,
                None if now.quantity == before.quantity else before.quantity,
                now.quantity,
            )
        )
    lines = tuple(line for line in priced if line.product is not None and line.quantity)
    name, email = draft.user or visit.session.name, draft.email or visit.session.email
    total_before = (draft.currency, draft.total) if changes else None
    return Checkout(lines, name, email, changes=tuple(changes), total_before=total_before)
