"""OpenTelemetry spans, if an endpoint is configured. `traceparent` is propagated either way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        parent = _propagator.extract({context.TRACE_HEADER: context.traceparent.get()})
        with self._tracer.start_as_current_span(name, parent, kind=kind):
            carrier: dict[str, str] = {}
            _propagator.inject(carrier)
            token = context.traceparent.set(carrier.get(context.TRACE_HEADER, ""))
            try:
                yield
            finally:
                context.traceparent.reset(token)


def setup(service: str, config: Tracing) -> Tracer:
    """Return the process's tracer; it exports in the background to the OTLP endpoint (HTTP), if one is configured."""
    if not config.otlp_endpoint:
        return Tracer()
    # Imported here, because they cost memory and start-up time that a process without tracing should not pay.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        resource=Resource.create({"service.name": service}), sampler=ParentBased(TraceIdRatioBased(config.sample_ratio))
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.otlp_endpoint)))
    return Tracer(provider.get_tracer("market"))
