"""What a call of an operation is: how it is sent, what it returns, and how its effect is checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import uuid4

import httpx

from tests.authorization.callers import OWNER
from tests.authorization.shop import Shop


class Outcome(StrEnum):
    ALLOWED = "allowed"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not found"


@dataclass
class Target:
    """What an operation is called for: a product, an order of the owner for one unit of it, and a dead letter about it.

    dead_letter_id: of the dead letter
    """

    product: dict[str, Any]
    order: dict[str, Any]
    dead_letter_id: str

    @property
    def product_id(self) -> str:
        return str(self.product["id"])

    @property
    def order_id(self) -> str:
        return str(self.order["id"])


@dataclass
class Reply:
    """What a call has returned. `text`: the whole response. `challenge`: the header WWW-Authenticate."""

    outcome: Outcome
    value: Any
    text: str = ""
    challenge: str = ""


Send = Callable[[Shop, Target, str | None], Awaitable[Reply]]
# Fails unless a permitted call had its effect. The last argument is the reply's value.
Check = Callable[[Shop, Target, Any], Awaitable[None]]


@dataclass(frozen=True)
class Call:
    """A call.

    changes: whether the operation changes something.
    other: what a buyer gets who calls it for another buyer.
    reads_token: whether the operation looks at tokens at all.
    """

    send: Send
    check: Check
    changes: bool = False
    other: Outcome = Outcome.FORBIDDEN
    reads_token: bool = True


async def create_target(shop: Shop) -> Target:
    """Create a product, place an order of the owner for it, and write a dead letter about the order."""
    product = await shop.create_product(name=f"Lamp {uuid4().hex[:8]}")
    order = await shop.place_order(shop.token(OWNER), product["id"], user=OWNER)
    return Target(product, order, await shop.stores.add_dead_letter(order))


_STATUSES = {401: Outcome.UNAUTHENTICATED, 403: Outcome.FORBIDDEN, 404: Outcome.NOT_FOUND}


def http_reply(response: httpx.Response) -> Reply:
    """Return the reply of a REST or admin request. Fails if it is neither a success nor a refusal."""
    outcome = Outcome.ALLOWED if response.is_success else _STATUSES.get(response.status_code)
    assert outcome, f"{response.status_code} {response.text}"
    value = response.json() if "json" in response.headers.get("content-type", "") else response.text
    return Reply(outcome, value, response.text, response.headers.get("www-authenticate", ""))
