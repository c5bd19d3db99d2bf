"""OpenTelemetry spans, if an endpoint is configured. `traceparent` is propagated either way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from market.kit import context
from market.kit.config import Tracing

_propagator = TraceContextTextMapPropagator()


class Tracer:
    """Creates spans; without an OpenTelemetry tracer it does nothing."""

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        self._tracer = tracer

    @property
    def enabled(self) -> bool:
        """Whether spans are created."""
        return self._tracer is not None

    @contextmanager
    def span(self, name: str, kind: trace.SpanKind = trace.SpanKind.SERVER) -> Iterator[None]:
        """Run the block in a span whose parent is the current `traceparent`; calls made inside become its children."""
        if self._tracer is None:
            yield
            return
        parent = _propagator.extract(
            {context.TRACE_HEADER: context.traceparent.get(), context.TRACE_STATE_HEADER: context.tracestate.get()}
        )
        with self._tracer.start_as_current_span(name, parent, kind=kind):
            carrier: dict[str, str] = {}
            _propagator.inject(carrier)
            token = context.traceparent.set(carrier.get(context.TRACE_HEADER, ""))
            state_token = context.tracestate.set(carrier.get(context.TRACE_STATE_HEADER, ""))
            try:
                yield
            finally:
                context.traceparent.reset(token)
                context.tracestate.reset(state_token)


def setup(service: str, config: Tracing) -> Tracer:
    """Return the process's tracer; it exports in the background to the OTLP endpoint (HTTP), if one is configured."""
    if not config.otlp_endpoint:
        return Tracer()
    # Imported here, because they cost memory and start-up time that a process without tracing should not pay.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": service}), sampler=sampler(config))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.otlp_endpoint)))
    return Tracer(provider.get_tracer("market"))


def sampler(config: Tracing, clock: Callable[[], float] = time.monotonic) -> Any:
    """Return the sampler of a process: `sample_ratio` of the traces, and at most `max_traces_per_second`.

    A caller's sampled flag does not bypass these limits: since the ratio depends on the trace id alone, all services
    choose the same traces, and a flag from outside cannot force tracing. A flag that is not set is respected.
    """
    from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased

    by_trace_id = TraceIdRatioBased(config.sample_ratio)

    class Limited(Sampler):
        """Samples by trace id, and limits the rate, because a caller could choose ids that are always sampled."""

        second = -1
        traces = 0

        def should_sample(self, *arguments: Any, **named: Any) -> SamplingResult:
            result = by_trace_id.should_sample(*arguments, **named)
            if result.decision is Decision.DROP:
                return result
            if self.second != (now := int(clock())):
                self.second, self.traces = now, 0
            self.traces += 1
            return result if self.traces <= config.max_traces_per_second else SamplingResult(Decision.DROP)

        def get_description(self) -> str:
            return f"Limited{{{by_trace_id.get_description()},{config.max_traces_per_second}/s}}"

    limited = Limited()
    return ParentBased(limited, remote_parent_sampled=limited)
