"""The messages of CheckAvaliable in their encoded form, and how many products concurrent calls read together."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.contracts import inventory_pb2 as pb
from market.inventory.api import parse_id, parse_ids, parse_message
from market.inventory.availability.messages import encode_response, read_ids
from market.inventory.batching.transactions import TransactionBatcher
from market.inventory.domain import MAX_STOCK
from market.kit.errors import BadInput

A, B, C = "aaaaaaaa-0000-4000-8000-000000000001", "bbbbbbbb-0000-4000-8000-000000000002", str(UUID(int=3))


@given(st.lists(st.tuples(st.uuids(), st.none() | st.integers(0, MAX_STOCK)), max_size=20))
def test_the_bytes_of_a_response_are_those_of_the_generated_code(stocks: list[tuple[UUID, int | None]]) -> None:
    items = [pb.Availability(product_id=str(i), available=bool(q), quantity=q or 0) for i, q in stocks]

    encoded = encode_response([str(i) for i, _ in stocks], [q for _, q in stocks])

    assert encoded == pb.CheckAvaliableResponse(items=items).SerializeToString(deterministic=True)


@given(st.lists(st.uuids(), max_size=20))
def test_the_ids_of_a_request_are_read_from_its_bytes(ids: list[UUID]) -> None:
    texts = [str(i) for i in ids]

    assert read_ids(pb.CheckAvaliableRequest(product_ids=texts).SerializeToString()) == texts
    assert read_ids(pb.GetStockRequest(product_ids=texts).SerializeToString()) == texts


@pytest.mark.parametrize(
    "text",
    [
        "",
        A[:-1],
        A + "0",
        A.replace("-", ""),
        A.replace("-", "0"),
        A[:-1] + "g",
        A[:-1] + "-",
        A[:-1] + " ",
        A[:-2] + "\u00b9\u00b9",
        " " + A[:-1],
        A[1:] + "0",
        "{" + A[1:],
        A.upper(),
        # Characters that occur in front of each id.
        A[:-2] + "\n$",
        A[:-38] + "\n$" + A[2:],
    ],
)
def test_a_text_of_another_form_is_left_to_the_generated_code(text: str) -> None:
    for texts in ([text], [A, text, B], [text, A]):
        assert read_ids(pb.CheckAvaliableRequest(product_ids=texts).SerializeToString()) is None


@pytest.mark.parametrize("added", [b"\n", b"$", b"\n$", b"-", b"0", b"\n\x00", b"\x12\x01a", b"0" * 38])
def test_bytes_of_another_message_are_left_to_the_generated_code(added: bytes) -> None:
    request = pb.CheckAvaliableRequest(product_ids=[A, B]).SerializeToString()

    assert read_ids(request) == [A, B]
    assert read_ids(request + added) is None
    assert read_ids(added + request) is None


def field(content: bytes, number: int = 1) -> bytes:
    """Return the bytes of a field with a text."""
    return bytes([number << 3 | 2, len(content)]) + content


def field_with_long_length(content: bytes) -> bytes:
    """Return the bytes of the field with an unnecessary byte in its length."""
    return bytes([10, len(content) | 0x80, 0]) + content


IDS = st.uuids().map(lambda i: str(i).encode())
ALMOST_IDS = st.text("0123456789abcdefABCDEF-{}\n$, \u0660", min_size=34, max_size=37).map(str.encode)
PARTS = st.one_of(
    IDS.map(field),
    IDS.map(bytes.upper).map(field),
    IDS.map(field_with_long_length),
    IDS.map(lambda i: field(i, number=2)),
    IDS.map(lambda i: field(i)[:-1]),
    ALMOST_IDS.map(field),
    st.binary(max_size=40).map(field),
    st.binary(max_size=40),
)


def parse_by_generated_code(request: bytes) -> list[str]:
    texts = parse_message(pb.CheckAvaliableRequest, request).product_ids
    return [str(parse_id(f"product_ids[{n}]", text)) for n, text in enumerate(texts)]


@given(st.lists(PARTS, max_size=6).map(b"".join))
def test_any_bytes_have_the_result_of_the_generated_code(request: bytes) -> None:
    results: list[list[str] | str] = []
    for parse in (parse_by_generated_code, partial(parse_ids, pb.CheckAvaliableRequest)):
        try:
            results.append(parse(request))
        except BadInput as e:
            results.append(str(e))
    assert results[0] == results[1]


class Stock:
    """A repository with 1 unit of A and 2 of B, whose reads wait until they are released."""

    def __init__(self) -> None:
        self.reads: list[list[str]] = []
        self.released = asyncio.Event()

    async def get_quantities(self, product_ids: Sequence[str]) -> list[int | None]:
        self.reads.append(list(product_ids))
        await self.released.wait()
        return [{A: 1, B: 2}.get(product_id) for product_id in product_ids]


async def test_calls_that_wait_read_each_product_once_and_get_their_own() -> None:
    stock = Stock()
    repository: Any = stock
    reads = TransactionBatcher(repository, repository).stock_reads
    first = asyncio.create_task(reads([A]))
    while not stock.reads:
        await asyncio.sleep(0)
    waiting = [asyncio.create_task(reads(ids)) for ids in ([B, A, B], [C, A], [], [B])]
    while reads.pending < len(waiting):
        await asyncio.sleep(0)

    stock.released.set()

    assert await first == [1]
    assert await asyncio.gather(*waiting) == [[2, 1, 2], [None, 1], [], [2]]
    assert stock.reads == [[A], [B, A, C]]


async def test_calls_with_very_many_products_do_not_share_a_query() -> None:
    stock = Stock()
    repository: Any = stock
    reads = TransactionBatcher(repository, repository).stock_reads
    first = asyncio.create_task(reads([A]))
    while not stock.reads:
        await asyncio.sleep(0)
    large = [[str(uuid4()) for _ in range(1000)] for _ in range(9)]
    waiting = [asyncio.create_task(reads(ids)) for ids in large]
    while reads.pending < len(waiting):
        await asyncio.sleep(0)

    stock.released.set()
    await asyncio.gather(first, *waiting)

    assert [len(ids) for ids in stock.reads] == [1, 8000, 1000]
