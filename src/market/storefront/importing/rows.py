"""A row of an import: the product that a file describes, and how the shop recognises it.

A product is recognised by its stock code: its description ends with it, and its idempotency key is made of it. So each
code becomes one product, no matter which file it comes from, and how often it is imported.
"""

from __future__ import annotations

from urllib.parse import quote

from msgspec import Struct

from market.contracts import money
from market.storefront.importing.online_retail import CURRENCY, Article

# The characters that an idempotency key may contain unencoded: visible ASCII.
_UNENCODED = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


class Row(Struct, frozen=True, array_like=True):
    """A product in a file. `number`: the line of the file. `image_url`: None if the file has no pictures."""

    number: int
    code: str
    name: str
    description: str
    price: str
    currency: str
    stock: int
    image_url: str | None = None


def of_article(article: Article, stock: int | None = None) -> Row:
    """Return the row of an article. `stock`: in units; default: the units that the file sells."""
    return Row(
        number=article.line,
        code=article.code,
        name=article.name,
        description=f"{article.name}. {ending(article.code)}",
        price=money.write(article.price, CURRENCY),
        currency=CURRENCY,
        stock=article.sold if stock is None else stock,
    )


def ending(code: str) -> str:
    """Return the end of the description of the product with that code."""
    return f"Stock code {code}."


def search_phrase(code: str) -> str:
    """Return a search that finds the product with that code, and may find others."""
    # As a phrase, because outside of one a hyphen in the code could exclude a word.
    return '"{}"'.format(ending(code).replace('"', " "))


def creation_key(code: str) -> str:
    """Return the idempotency key with which the product is created."""
    return quote(f"import:{code}", safe=_UNENCODED)
