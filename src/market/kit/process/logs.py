"""Structured logs, as JSON or for the console, with the request id and the trace id if there are any."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

from market.kit import context
from market.kit.config import Log
from market.kit.optional_imports import without

# For tracebacks with colours, which are not used here. Images do not contain it.
with without("rich"):
    import structlog


def _add_request(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    if request_id := context.request_id.get():
        event.setdefault("request_id", request_id)
    if trace := context.traceparent.get():
        event.setdefault("trace_id", trace[3:35])
    return event


class _Stderr:
    """Writes to standard error, and ignores errors: requests must not fail because of a full disk or a closed pipe."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return sys.stderr.write(text)
        return 0

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def _printable(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Replace unprintable characters. In untrusted text, they could control the terminal or forge a log line."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else "\ufffd" for c in value)
    return event


def setup(service: str, config: Log) -> None:
    """Configure structlog and the standard library's logging to write to stderr in the same format."""
    level = getattr(logging, config.level.upper())

    def add_service(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        event["service"] = service
        return event

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
        _add_request,
        structlog.processors.StackInfoRenderer(),
    ]
    if config.format == "json":
        final: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        final = [
            _printable,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_Stderr())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries log only warnings and errors.
    root.setLevel(max(level, logging.WARNING))


def get_logger(name: str) -> Any:
    """Return a logger whose lines name the component: `log.info("order placed", order_id=...)`."""
    return structlog.get_logger(component=name)
