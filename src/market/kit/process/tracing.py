"""OpenTelemetry spans, if an endpoint is configured. `traceparent` is always propagated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from market.kit import context
from market.kit.config import Tracing

# The maximum number of links of a span, which is also the SDK's default limit.
MAX_LINKS = 128
_LOWER_64_BITS = (1 << 64) - 1

_propagator = TraceContextTextMapPropagator()
# For the root span of a batch: the id of the first trace that it links to. The span must get the same sampling decision
# as that trace (see id_generator).
_linked_trace_id: ContextVar[int | None] = ContextVar("linked_trace_id", default=None)


class Tracer:
    """Creates spans. Without an OpenTelemetry tracer, it does nothing."""

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        self._tracer = tracer

    @property
    def enabled(self) -> bool:
        """Whether spans are created."""
        return self._tracer is not None

    @contextmanager
    def span(self, name: str, kind: trace.SpanKind = trace.SpanKind.SERVER) -> Iterator[None]:
        """Run the block in a span whose parent is the current `traceparent`. Calls made inside become its children."""
        if self._tracer is None:
            yield
            return
        with self._span(self._tracer, name, kind, _parse(context.current_trace()), ()):
            yield

    @contextmanager
    def batch_span(self, name: str, callers: Sequence[context.Trace]) -> Iterator[None]:
        """Run the block in a span for work that one or more callers wait for.

        With one caller, the span is a child of the caller's span. With several callers, it is the root of a new trace,
        and is linked to the callers' spans that are sampled. If none is sampled, no span is created.
        """
        if self._tracer is None:
            yield
            return
        if len(callers) == 1:
            with self._span(self._tracer, name, trace.SpanKind.INTERNAL, _parse(callers[0], is_remote=False), ()):
                yield
            return
        spans = [trace.get_current_span(_parse(caller, is_remote=False)).get_span_context() for caller in callers]
        links = [trace.Link(span) for span in spans if span.trace_flags.sampled][:MAX_LINKS]
        if not links:
            yield
            return
        token = _linked_trace_id.set(links[0].context.trace_id)
        try:
            with self._span(self._tracer, name, trace.SpanKind.INTERNAL, None, links):
                yield
        finally:
            _linked_trace_id.reset(token)

    @contextmanager
    def _span(
        self, tracer: trace.Tracer, name: str, kind: trace.SpanKind, parent: Any, links: Sequence[trace.Link]
    ) -> Iterator[None]:
        with tracer.start_as_current_span(name, parent, kind=kind, links=links):
            carrier: dict[str, str] = {}
            _propagator.inject(carrier)
            token = context.traceparent.set(carrier.get(context.TRACE_HEADER, ""))
            state_token = context.tracestate.set(carrier.get(context.TRACE_STATE_HEADER, ""))
            tracer_token = current.set(self)
            try:
                yield
            finally:
                current.reset(tracer_token)
                context.traceparent.reset(token)
                context.tracestate.reset(state_token)


# The tracer of the innermost span; None outside of spans, and without an OpenTelemetry tracer.
current: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


def _parse(caller: context.Trace, *, is_remote: bool = True) -> Any:
    """Return the OpenTelemetry context of the caller's span. `is_remote`: whether another process created the span."""
    parsed = _propagator.extract(
        {context.TRACE_HEADER: caller.traceparent, context.TRACE_STATE_HEADER: caller.tracestate}
    )
    if is_remote:
        return parsed
    span = trace.get_current_span(parsed).get_span_context()
    local = trace.SpanContext(span.trace_id, span.span_id, False, span.trace_flags, span.trace_state)
    return trace.set_span_in_context(trace.NonRecordingSpan(local))


def setup(service: str, config: Tracing) -> Tracer:
    """Return the tracer of the process. It exports in the background to the OTLP endpoint (HTTP), if there is one."""
    if not config.otlp_endpoint:
        return Tracer()
    # Imported here, because these modules take memory and start-up time, and are not needed without tracing.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": service})
    provider = TracerProvider(resource=resource, sampler=sampler(config), id_generator=id_generator())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.otlp_endpoint)))
    return Tracer(provider.get_tracer("market"))


def id_generator() -> Any:
    """Return the generator of span and trace ids.

    Sampling depends only on the lower 64 bits of a trace's id. In the id of a batch's trace, these bits are copied from
    the first trace that it links to. So every service samples either both traces or neither.
    """
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class SharedSampling(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            trace_id = super().generate_trace_id()
            linked = _linked_trace_id.get()
            if linked is None:
                return trace_id
            return (trace_id & ~_LOWER_64_BITS) | (linked & _LOWER_64_BITS)

    return SharedSampling()


def sampler(config: Tracing, clock: Callable[[], float] = time.monotonic) -> Any:
    """Return the sampler of a process: `sample_ratio` of the traces, and at most `max_traces_per_second`.

    The share is chosen by trace id, so all services choose the same traces. A caller could pick ids that are always
    chosen, so the rate is limited as well. If the caller's `traceparent` has no sampled flag, the trace is not sampled.
    If it has the flag, both limits still apply.
    """
    from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased

    by_trace_id = TraceIdRatioBased(config.sample_ratio)

    class Limited(Sampler):
        second = -1
        traces = 0

        def should_sample(self, *arguments: Any, **named: Any) -> SamplingResult:
            result = by_trace_id.should_sample(*arguments, **named)
            if result.decision is Decision.DROP or _linked_trace_id.get() is not None:
                # A batch's trace does not count towards the rate: the traces of its callers did.
                return result
            if self.second != (now := int(clock())):
                self.second, self.traces = now, 0
            self.traces += 1
            return result if self.traces <= config.max_traces_per_second else SamplingResult(Decision.DROP)

        def get_description(self) -> str:
            return f"Limited{{{by_trace_id.get_description()},{config.max_traces_per_second}/s}}"

    limited = Limited()
    return ParentBased(limited, remote_parent_sampled=limited)
