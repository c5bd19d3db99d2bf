"""Structured logs: JSON for machines, console for people; every line with the request's id."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

# structlog takes rich for tracebacks where it finds it. Ours are plain, and rich is a tenth of a service's memory (5 MiB).
_rich: Any = sys.modules.setdefault("rich", cast(Any, None))
import structlog  # noqa: E402

if _rich is None:
    del sys.modules["rich"]

from market.kit import context  # noqa: E402
from market.kit.config import Log  # noqa: E402


def _add_request(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    if id := context.request_id.get():
        event.setdefault("request_id", id)
    if trace := context.traceparent.get():
        event.setdefault("trace_id", trace[3:35])
    return event


class _Stderr:
    """Standard error, or nothing: a full disk or a closed pipe behind the log must not fail a request."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return sys.stderr.write(text)
        return 0

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def _printable(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """What came from outside must not steer the terminal or look like a line of its own."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else "\ufffd" for c in value)
    return event


def setup(service: str, config: Log) -> None:
    """Sets up structlog and the standard library's logging alike, to stderr."""
    level = getattr(logging, config.level.upper())

    def name(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        event["service"] = service
        return event

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name,
        _add_request,
        structlog.processors.StackInfoRenderer(),
    ]
    if config.format == "json":
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        last = [
            _printable,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_Stderr())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up at warning; their daily business is not ours.
    root.setLevel(max(level, logging.WARNING))


def get_logger(name: str) -> Any:
    """A logger: `log.info("order placed", order_id=...)`."""
    return structlog.get_logger(part=name)
