"""Rules without I/O: the state machine, merging, pricing, digests, money in BSON, and the configuration's limits."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import pytest
from bson import Decimal128
from hypothesis import given
from hypothesis import strategies as st

from market.contracts import events, money
from market.kit import config as kit_config
from market.kit.errors import BadInput
from market.orders import domain
from market.orders.config import Config
from market.orders.domain import (
    TRANSITIONS,
    NewOrder,
    Order,
    OrderLine,
    OutboxEntry,
    Product,
    RequestedLine,
    Status,
    Step,
    apply_transition,
    next_step,
)
from market.orders.mongodb.documents import from_decimal128, to_decimal128, transition_update
from market.orders.pricing.prices import PriceChanged, PricedLines, merge_lines, price_lines

AT = datetime(2026, 1, 31, 12, 30, 15, 250_000, tzinfo=UTC)
ORDER = Order(
    UUID(int=1),
    "ada",
    None,
    (OrderLine("p", "Lämp", 2, Decimal("1.25")),),
    Decimal("2.50"),
    "GBP",
    AT,
    idempotency_key="k",
    digest=b"d",
)


@given(st.lists(st.sampled_from(TRANSITIONS), max_size=6))
def test_after_any_sequence_of_transitions_the_due_work_follows_from_the_status(
    transitions: list[domain.Transition],
) -> None:
    order = ORDER
    for transition in transitions:
        if order.status is transition.source:
            entry = (
                OutboxEntry(events.event_id(order.id, transition.event), transition.event, AT)
                if transition.event
                else None
            )
            order = apply_transition(order, transition, entry)
        else:
            with pytest.raises(AssertionError):
                apply_transition(order, transition)
    ended = order.status in (Status.REJECTED, Status.CANCELLED)
    assert order.release_due == ended
    assert (order.idempotency_key is None) == (order.status is Status.REJECTED)
    types = [e.event_type for e in order.outbox]
    assert types == [events.CREATED, events.CANCELLED][: len(types)]
    assert (order.status is Status.CONFIRMED) <= (types == [events.CREATED])
    assert (next_step(order) is Step.RESERVE) == (order.status is Status.PENDING)
    assert (next_step(order, overdue=True) is Step.REJECT) == (order.status is Status.PENDING)


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_a_transition_is_one_update_conditional_on_the_status(transition: domain.Transition) -> None:
    update = transition_update(ORDER.id, transition, at=AT)
    where, change = update.where, update.change
    assert where == {"_id": ORDER.id, "status": transition.source.value}
    assert change["$set"]["status"] == transition.target.value
    assert ("release_due" in change.get("$currentDate", {})) == transition.releases
    assert ("key" in change.get("$unset", {})) == transition.frees_key


@given(st.decimals(min_value=0, max_value=Decimal("99999999999999999.99"), places=2))
def test_money_is_stored_exactly_as_decimal128(amount: Decimal) -> None:
    assert to_decimal128(amount) == Decimal128(amount.quantize(Decimal("0.01")))
    assert from_decimal128(to_decimal128(amount)) == amount


@given(st.decimals(min_value=0, max_value=Decimal("99999999999999999.999"), places=3))
def test_money_with_three_decimals_is_stored_exactly(amount: Decimal) -> None:
    assert from_decimal128(to_decimal128(amount)) == amount
    assert to_decimal128(amount).to_decimal() == amount


def test_money_is_stored_in_hundredths_if_it_has_no_third_decimal() -> None:
    """Then earlier versions read it, too."""
    assert to_decimal128(Decimal("1.250")) == Decimal128("1.25")
    assert to_decimal128(Decimal("1.255")) == Decimal128("1.255")


@pytest.mark.parametrize("text", ["0", "1", "1.5", "1E+2", "12.34"])
def test_money_written_by_other_programs_is_readable(text: str) -> None:
    assert from_decimal128(Decimal128(text)) == Decimal(text)


def test_lines_of_one_product_are_merged_in_the_order_of_first_mention() -> None:
    assert merge_lines([RequestedLine("B", 1), RequestedLine("a", 2), RequestedLine("b", 3)]) == (
        RequestedLine("b", 4),
        RequestedLine("a", 2),
    )
    with pytest.raises(BadInput, match=r"items\[1\].quantity"):
        merge_lines([RequestedLine("a", 999_999), RequestedLine("a", 2)])


def test_pricing_takes_names_and_prices_from_the_catalogue() -> None:
    new = NewOrder("ada", None, (RequestedLine("a", 3), RequestedLine("b", 1)), Decimal("8.50"))
    products = {"a": Product("a", "A", Decimal("2.50"), "EUR"), "b": Product("b", "B", Decimal("1.00"), "EUR")}
    assert price_lines(new, products) == PricedLines(
        (OrderLine("a", "A", 3, Decimal("2.50")), OrderLine("b", "B", 1, Decimal("1.00"))),
        Decimal("8.50"),
        "EUR",
    )


def test_totals_have_the_decimals_of_the_currency() -> None:
    products = {"a": Product("a", "A", money.parse_price("1.255"), "KWD")}
    priced = price_lines(NewOrder("ada", None, (RequestedLine("a", 2),), money.parse_total("2.510")), products)
    assert priced.total == Decimal("2.51")
    with pytest.raises(PriceChanged, match=r"^the total is now 2\.510 KWD$") as raised:
        price_lines(NewOrder("ada", None, (RequestedLine("a", 2),), money.parse_total("2.5")), products)
    assert raised.value.extension_members() == {"total": "2.510", "currency": "KWD"}


def test_requests_with_the_same_meaning_have_the_same_digest() -> None:
    one = NewOrder("ada", None, merge_lines([RequestedLine("a", 1)] * 2), None)
    assert one.digest() == NewOrder("ada", None, (RequestedLine("a", 2),), None).digest()
    assert one.digest() != NewOrder("ada", None, (RequestedLine("a", 3),), None).digest()


def test_the_digest_of_a_request_is_the_same_in_every_version() -> None:
    """It is stored with the idempotency key: a request that is repeated after a deployment must still match."""
    new = NewOrder("ada", None, (RequestedLine("a", 2),), money.parse_total("5.000"))
    assert (
        new.digest().hex()
        == sha256(
            b'{"user":"ada","email":null,"wanted":[{"product_id":"a","quantity":2}],"expected_total":"5.00"}'
        ).hexdigest()
    )
    with_currency = NewOrder(new.user, new.email, new.lines, new.expected_total, "EUR")
    assert with_currency.digest() != new.digest()


def test_an_event_has_a_stable_id_and_shows_the_order_as_it_is() -> None:
    entry = OutboxEntry(events.event_id(ORDER.id, events.CREATED), events.CREATED, AT)
    event = domain.to_event(ORDER, entry)
    assert (event.id, event.sequence, event.subject) == (str(entry.id), "1", str(ORDER.id))
    assert event.time == "2026-01-31T12:30:15.250Z"
    assert event.data.items[0].unit_price == "1.25"


VALID_CONFIGURATION = """
admin: {port: 1}
http: {port: 2}
mongodb: {uri: "mongodb://x"}
inventory: {target: "x:1"}
products: {url: "http://x"}
kafka: {bootstrap_servers: "x:1"}
"""


@pytest.mark.parametrize(
    ("addition", "reason"),
    [
        (
            "recovery: {reject_after_seconds: 29}",
            "recovery.reject_after_seconds: must be at least three times create_order_timeout_seconds",
        ),
        ("recovery: {lease_seconds: 20}", "kafka.delivery_seconds: must be below recovery.lease_seconds"),
        ("colour: red", "colour"),
        ("create_order_timeout_seconds: 0", "create_order_timeout_seconds"),
        ("faults: {directory: /tmp}", "faults: only allowed if testing is true"),
    ],
)
def test_a_configuration_that_would_lose_orders_is_rejected(tmp_path: Path, addition: str, reason: str) -> None:
    file = tmp_path / "orders.yaml"
    file.write_text(VALID_CONFIGURATION)
    assert kit_config.load(file, Config, {}).create_order_timeout_seconds == 10
    file.write_text(VALID_CONFIGURATION + addition)
    with pytest.raises(kit_config.ConfigError, match=reason.replace(".", r"\.")):
        kit_config.load(file, Config, {})
