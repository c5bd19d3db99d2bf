"""The pages on which merchants create, change and delete a product.

A form contains the version and the values that the editor saw. If somebody else has changed the product since, nothing
is changed, and the editor is shown both values of each field that differs, to choose one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import uuid4

from starlette.responses import Response

from market.contracts import currency
from market.kit.errors import BadInput, NotFound
from market.storefront.basket.basket import parse_product_id
from market.storefront.desk import changes
from market.storefront.desk.changes import KeyReused, ProductChanged
from market.storefront.desk.notices import redirect_with_notice
from market.storefront.desk.product_form import (
    SEEN,
    Mistakes,
    Values,
    differences,
    read_choices,
    read_merged,
    undecided,
)
from market.storefront.desk.unknown import outcome_unknown
from market.storefront.domain import DeskProduct, OutcomeUnknown, RequestRefused
from market.storefront.pages.visit import Page, Visit
from market.storefront.texts.languages import N_

LIST_PATH = "/desk/products"
MAX_STOCK = 2_147_483_647
_MAX_KEY = 64


@dataclass(frozen=True)
class Creation:
    """The page for a new product. key: the idempotency key, a new one for each page. stock: as it was typed."""

    values: Values = field(default_factory=Values)
    stock: str = "0"
    mistakes: Mistakes = field(default_factory=Mistakes)
    key_was_used: bool = False
    key: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True)
class Edit:
    """The page that changes a product.

    seen: the values of `version`, which the editor saw
    values: as they were typed
    product: as it is now; None if the page is shown again with what was typed
    """

    product_id: str
    version: int
    seen: Values
    values: Values
    product: DeskProduct | None = None
    mistakes: Mistakes = field(default_factory=Mistakes)


async def get_new(visit: Visit) -> Response:
    """Show the form for a new product."""
    return _show_creation(visit, Creation())


async def create_product(visit: Visit) -> Response:
    """Create the product, once however often the form is sent."""
    values, stock_text, key = Values.read(visit), visit.value("stock"), visit.value("key")
    if not (key.isascii() and key.isalnum() and len(key) <= _MAX_KEY):
        raise BadInput("key", "must be the key of a form")
    if visit.value("action") == "preview":
        return _show_creation(visit, Creation(values, stock_text, key=key))
    stock = parse_units(stock_text)
    if stock is None:
        # The shop validates the other fields, but not without a number here.
        return _show_creation(visit, Creation(values, stock_text, Mistakes(("stock",)), key=key), status=400)
    try:
        product = await changes.create_product(visit.deps, values, stock=stock, key=key)
    except RequestRefused as e:
        return _show_creation(visit, Creation(values, stock_text, Mistakes.of(e), key=key), status=400)
    except KeyReused:
        return _show_creation(visit, Creation(values, stock_text, key_was_used=True), status=409)
    except OutcomeUnknown:
        return outcome_unknown(visit, look_path=LIST_PATH)
    return redirect_with_notice(visit, path_of(product.id), N_("%(name)s was created."), name=product.name)


async def get_product(visit: Visit) -> Response:
    """Show the form that changes a product."""
    product = await changes.get_product(visit.deps, product_id=visit.parameter("id"))
    values = Values.of(product)
    return _show_edit(visit, Edit(product.id, product.version, values, values, product))


async def change_product(visit: Visit) -> Response:
    """Change the product, or show how it differs from what the editor saw."""
    product_id, version = product_id_of(visit), read_version(visit)
    choices, seen = read_choices(visit), Values.read(visit, SEEN)
    values = read_merged(visit, choices)
    edit = Edit(product_id, version, seen, values)
    if visit.value("action") == "preview":
        return _show_edit(visit, edit)
    try:
        if undecided(choices):
            current = await changes.get_product(visit.deps, product_id=product_id)
            return _show_conflict(visit, edit, current, choices, is_undecided=True)
        product = await changes.change_product(visit.deps, values, product_id=product_id, version=version)
    except RequestRefused as e:
        return _show_edit(visit, Edit(product_id, version, seen, values, mistakes=Mistakes.of(e)), status=400)
    except ProductChanged as e:
        return _show_conflict(visit, edit, e.current, {})
    except NotFound:
        return visit.page("desk/product_gone.html", status=404, values=values)
    except OutcomeUnknown:
        return outcome_unknown(visit, look_path=path_of(product_id))
    return redirect_with_notice(visit, path_of(product_id), N_("%(name)s was changed."), name=product.name)


async def get_deletion(visit: Visit) -> Response:
    """Show the page that asks for confirmation."""
    product = await changes.get_product(visit.deps, product_id=visit.parameter("id"))
    return _show_deletion(visit, product)


async def delete_product(visit: Visit) -> Response:
    """Delete the product. If somebody has changed it since, ask for confirmation again."""
    product_id, seen = product_id_of(visit), Values.read(visit, SEEN)
    try:
        await changes.delete_product(visit.deps, product_id=product_id, version=read_version(visit))
    except ProductChanged as e:
        return _show_deletion(visit, e.current, seen)
    except NotFound:
        # Deleted by somebody else, or by an earlier attempt whose outcome was unknown.
        return redirect_with_notice(visit, LIST_PATH, N_("%(name)s has been deleted already."), name=seen.name)
    except OutcomeUnknown:
        return outcome_unknown(visit, look_path=LIST_PATH)
    return redirect_with_notice(visit, LIST_PATH, N_("%(name)s was deleted."), name=seen.name)


def path_of(product_id: str) -> str:
    """Return the path of the page that changes the product."""
    return f"{LIST_PATH}/{product_id}"


def product_id_of(visit: Visit) -> str:
    """Return the product's id from the path. Raises NotFound if it is not a UUID."""
    try:
        return parse_product_id(visit.parameter("id"))
    except BadInput:
        raise NotFound("product") from None


def read_version(visit: Visit) -> int:
    """Return the version in the form. Raises BadInput."""
    text = visit.value("version")
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise BadInput("version", "must be a whole number")
    return int(text)


def parse_units(text: str) -> int | None:
    """Return a number of units, or None if the text is not a whole number from 0 to MAX_STOCK."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    return int(text) if int(text) <= MAX_STOCK else None


def _show_creation(visit: Visit, creation: Creation, *, status: int = 200) -> Response:
    return visit.page("desk/product_new.html", status=status, creation=creation, currencies=_currencies(visit))


def _show_edit(visit: Visit, edit: Edit, *, status: int = 200) -> Response:
    return visit.page("desk/product.html", status=status, edit=edit, currencies=_currencies(visit))


def _show_conflict(
    visit: Visit, edit: Edit, current: DeskProduct, choices: dict[str, str], *, is_undecided: bool = False
) -> Response:
    """Show both values of each field that differs. The form of this page has the version of `current`."""
    theirs = Values.of(current)
    return visit.page(
        "desk/product_conflict.html",
        status=409,
        edit=edit,
        current=current,
        theirs=theirs,
        differences=differences(edit.values, theirs, edit.seen, choices),
        is_undecided=is_undecided,
    )


def _show_deletion(visit: Visit, product: DeskProduct, before: Values | None = None) -> Response:
    """Ask for confirmation. before: the values that the merchant saw, if the product has been changed since."""
    current = Values.of(product)
    changed = () if before is None else before.differing(current)
    return visit.page(
        "desk/product_deletion.html",
        status=200 if before is None else 409,
        product=product,
        current=current,
        before=before,
        changed=changed,
    )


def _currencies(visit: Visit) -> tuple[tuple[str, str], ...]:
    """Return the codes of all currencies with their names in the visitor's language."""
    return tuple((code, visit.language.currency_name(code)) for code in currency.CODES)


ROUTES: Mapping[str, Page] = {
    "GET /desk/products/new": get_new,
    "POST /desk/products": create_product,
    "GET /desk/products/{id}": get_product,
    "POST /desk/products/{id}": change_product,
    "GET /desk/products/{id}/deletion": get_deletion,
    "POST /desk/products/{id}/deletion": delete_product,
}
