"""gRPC calls: what a status becomes, which text the caller gets, and what travels with a call."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from market.kit import context, errors
from market.kit.config import GrpcUpstream
from market.kit.errors import BadInput, NotFound
from market.kit.process.health import Health
from market.kit.rpc import client as rpc
from market.kit.rpc.client import problem_from_status
from market.kit.rpc.server import REQUESTS, GrpcServer, endpoint
from tests.support.ports import free_port
from tests.support.waiting import until


@pytest.mark.parametrize("sentence", ["there is no reservation 7", "no stock row for product 7"])
def test_a_not_found_status_keeps_the_upstreams_sentence(sentence: str) -> None:
    problem = problem_from_status(errors.GRPC_NOT_FOUND, sentence)
    assert isinstance(problem, NotFound)
    assert problem.document() == {
        "type": "urn:market:problem:not-found",
        "title": "Not found",
        "status": 404,
        "detail": sentence,
    }


def test_a_not_found_status_without_a_message_has_the_title_as_detail() -> None:
    assert problem_from_status(errors.GRPC_NOT_FOUND, "").document()["detail"] == "Not found"


def test_an_invalid_argument_status_names_the_field_before_the_colon() -> None:
    problem = problem_from_status(errors.GRPC_INVALID_ARGUMENT, "quantity: must be at least 1, got 0")
    assert isinstance(problem, BadInput)
    assert (problem.field, problem.reason) == ("quantity", "must be at least 1, got 0")


@pytest.mark.parametrize(("state", "bag"), [("a=1,b=2", "user=7;p=1,shop=8"), ("a=" + "x" * 510, "b=" + "y" * 8190)])
async def test_request_id_and_trace_travel_with_a_call(state: str, bag: str) -> None:
    """The second case has the largest values that are forwarded."""
    trace = context.Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", state, bag)
    seen: list[tuple[str, context.Trace]] = []

    async def handler(request: Any) -> StringValue:
        seen.append((context.request_id.get(), context.current_trace()))
        return StringValue()

    method = grpc.unary_unary_rpc_method_handler(
        endpoint("Echo", handler), StringValue.FromString, StringValue.SerializeToString
    )
    port = free_port()
    services = {"test.Echo": grpc.method_handlers_generic_handler("test.Echo", {"Echo": method})}
    server = GrpcServer("127.0.0.1", port, Health(), services)
    await server.start()
    try:
        async with rpc.channel(GrpcUpstream(target=f"127.0.0.1:{port}")) as channel:
            call = channel.unary_unary("/test.Echo/Echo", StringValue.SerializeToString, StringValue.FromString)
            context.request_id.set("abc-1")
            context.set_trace(*trace)
            for _ in range(20):
                await rpc.call(call, StringValue(), 10)
    finally:
        await server.stop(0)
    assert seen == [("abc-1", trace)] * 20


async def test_a_call_that_the_client_cancels_is_counted_as_cancelled() -> None:
    started = asyncio.Event()

    async def handler(request: Any) -> StringValue:
        started.set()
        await asyncio.Event().wait()
        return StringValue()

    method = grpc.unary_unary_rpc_method_handler(
        endpoint("Wait", handler), StringValue.FromString, StringValue.SerializeToString
    )
    port = free_port()
    services = {"test.Wait": grpc.method_handlers_generic_handler("test.Wait", {"Wait": method})}
    server = GrpcServer("127.0.0.1", port, Health(), services)
    await server.start()
    try:
        async with rpc.channel(GrpcUpstream(target=f"127.0.0.1:{port}")) as channel:
            call = channel.unary_unary("/test.Wait/Wait", StringValue.SerializeToString, StringValue.FromString)
            calling = asyncio.create_task(rpc.call(call, StringValue(), 60))
            await started.wait()
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            await until(lambda: REQUESTS.labels("Wait", "CANCELLED")._value.get() == 1)
    finally:
        await server.stop(0)
    assert REQUESTS.labels("Wait", "OK")._value.get() == 0
