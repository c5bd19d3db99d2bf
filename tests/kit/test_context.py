"""What travels with a request: headers of callers, within bounds."""

from __future__ import annotations

import time

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.requests import Request
from starlette.responses import Response

from market.kit import context
from market.kit.config import Http, Tracing
from market.kit.http import edge
from market.kit.http.responses import json_response
from market.kit.process.tracing import Tracer, sampler
from tests.support.clocks import FakeClock

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PARENT, PARENT),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{TRACE}-{SPAN}-ff", f"00-{TRACE}-{SPAN}-03"),
        (f"01-{TRACE}-{SPAN}-01", PARENT),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", PARENT),
        (f"cc-{TRACE}-{SPAN}-01.what-the-future-brings", ""),
        (f"00-{TRACE}-{SPAN}-01-more", ""),
        (f"ff-{TRACE}-{SPAN}-01", ""),
        (f"00-{'0' * 32}-{SPAN}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (PARENT.upper(), ""),
        (f"{PARENT},{PARENT}", ""),
        ("", ""),
    ],
)
def test_a_traceparent_is_read_as_far_as_its_version_is_known(text: str, expected: str) -> None:
    assert context.parse_traceparent(text) == expected


@pytest.mark.parametrize(
    ("request_id", "is_valid"),
    [
        ("a", True),
        ("01a22179d0047066820aecc231b68453", True),
        ("Root=1-67891233-abcdef012345678912345678", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("-a", False),
        ('a"b', False),
        ("a<b>", False),
        ("a%0d%0ab", False),
        ("${jndi:x}", False),
        ("a b", False),
        ("é", False),
    ],
)
def test_a_request_id_has_a_bounded_form(request_id: str, is_valid: bool) -> None:
    assert context.valid_request_id(request_id) is is_valid


async def call(headers: list[tuple[str, str]]) -> tuple[dict[str, str], float]:
    """Return the headers that a call to an upstream would have, and the seconds that it may take."""
    seen: list[tuple[dict[str, str], float]] = []

    async def endpoint(_: Request) -> Response:
        seen.append((context.propagation_headers(), context.remaining(60)))
        return json_response({})

    async def send(message: dict[str, object]) -> None:
        statuses.append(message.get("status"))

    statuses: list[object] = []
    raw = [(name.encode(), value.encode()) for name, value in headers]
    app = edge.application({"GET /": endpoint}, Http(port=1))
    await app({"type": "http", "method": "GET", "path": "/", "headers": raw, "query_string": b""}, None, send)
    assert statuses[0] == 200
    return seen[0]


async def test_tracestate_and_baggage_travel_on_with_traceparent() -> None:
    ids, _ = await call(
        [
            ("x-request-id", "abc-1"),
            ("traceparent", PARENT),
            ("tracestate", "a=1"),
            ("tracestate", "b=2"),
            ("baggage", "user=7;p=1,shop=8"),
        ]
    )
    assert ids == {
        "x-request-id": "abc-1",
        "traceparent": PARENT,
        "tracestate": "a=1,b=2",
        "baggage": "user=7;p=1,shop=8",
    }


@pytest.mark.parametrize(
    "headers",
    [
        [("tracestate", "a=1"), ("baggage", "b=2")],
        [("traceparent", "00-x"), ("tracestate", "a=1"), ("baggage", "b=2")],
        [("traceparent", PARENT), ("traceparent", PARENT), ("tracestate", "a=1")],
    ],
)
async def test_without_a_valid_traceparent_nothing_of_a_trace_travels_on(headers: list[tuple[str, str]]) -> None:
    ids, _ = await call(headers)
    assert set(ids) == {"x-request-id"}


async def test_tracestate_and_baggage_beyond_their_bounds_are_left_out() -> None:
    for state, bag in (
        ("a=" + "x" * 511, "b=" + "x" * 8191),
        (",".join(f"a{n}=1" for n in range(33)), ",".join(f"b{n}=1" for n in range(65))),
        ("a=é", "b=\x01"),
    ):
        ids, _ = await call([("traceparent", PARENT), ("tracestate", state), ("baggage", bag)])
        assert (ids["traceparent"], set(ids)) == (PARENT, {"traceparent", "x-request-id"})
    ids, _ = await call([("traceparent", PARENT), ("tracestate", "a=" + "x" * 510), ("baggage", "b=" + "x" * 8190)])
    assert (len(ids["tracestate"]), len(ids["baggage"])) == (512, 8192)


@pytest.mark.parametrize(
    ("sent", "at_most", "at_least"), [("1", 0.1, 0.0), ("1500", 1.5, 0.1), ("999999999", 3.0, 0.1)]
)
async def test_a_deadline_from_outside_is_bounded_below_and_above(sent: str, at_most: float, at_least: float) -> None:
    before = time.monotonic()
    _, seconds = await call([("x-deadline-ms", sent)])
    assert at_most - (time.monotonic() - before) <= seconds <= at_most
    assert seconds >= at_least


def sampled(config: Tracing, parents: list[str], clock: FakeClock) -> list[bool]:
    """Return which of the requests with these `traceparent` headers are traced."""
    tracer = TracerProvider(sampler=sampler(config, clock)).get_tracer("test")
    flags = []
    for parent in parents:
        remote = TraceContextTextMapPropagator().extract({"traceparent": parent})
        flags.append(tracer.start_span("request", remote).get_span_context().trace_flags.sampled)
    return flags


def test_a_sampled_flag_from_outside_does_not_force_tracing(clock: FakeClock) -> None:
    high, low = "f" * 32, "1" + "0" * 30 + "1"
    parents = [f"00-{high}-{SPAN}-01", f"00-{low}-{SPAN}-01", f"00-{low}-{SPAN}-00"]
    assert sampled(Tracing(sample_ratio=0.01), parents, clock) == [False, True, False]
    assert sampled(Tracing(sample_ratio=0), parents, clock) == [False, False, False]
    assert sampled(Tracing(sample_ratio=1), parents, clock) == [True, True, False]


def test_chosen_trace_ids_are_traced_up_to_a_number_a_second(clock: FakeClock) -> None:
    parents = [f"00-{n:016x}{'0' * 15}1-{SPAN}-01" for n in range(1, 51)]
    config = Tracing(sample_ratio=0.01, max_traces_per_second=10)
    assert sampled(config, parents, clock).count(True) == 10


def test_a_span_keeps_the_tracestate(clock: FakeClock) -> None:
    provider = TracerProvider(sampler=sampler(Tracing(sample_ratio=1), clock))
    spans = Tracer(provider.get_tracer("test"))
    context.set_trace(PARENT, "a=1", "b=2")
    with spans.span("GET /", trace.SpanKind.SERVER):
        ids = context.propagation_headers()
    assert (ids["tracestate"], ids["baggage"], ids["traceparent"][:36]) == ("a=1", "b=2", PARENT[:36])
    assert ids["traceparent"] != PARENT
    assert context.traceparent.get() == PARENT
    context.set_trace("")
