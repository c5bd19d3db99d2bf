"""Liveness, readiness and metrics of a process, and the admin port that serves them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from market.kit.process import logs
from market.kit.resilience import backoff, reraise_if_cancelled

T = TypeVar("T")
log = logs.get_logger("health")

_AVAILABLE = Gauge(
    "market_dependency_available", "Whether a dependency of this process is available: 1 or 0.", ["dependency"]
)

Check = Callable[[], Awaitable[None]]


class Health:
    """The readiness of a process: it is ready once it has started, while it is not draining and no part has failed.

    If a store becomes unavailable after the start, this is reported, but the process stays ready, because all instances
    share the store (docs/decisions/0017).

    started: set by the process once it serves
    draining: set on shutdown, before the process stops serving
    """

    def __init__(self) -> None:
        self.started = False
        self.draining = False
        self._unready: dict[str, str] = {}
        self._unavailable: dict[str, str] = {}
        self._checks: dict[str, Check] = {}

    def add_check(self, name: str, check: Check) -> None:
        """Add a check of one of the service's own stores. `check` raises if the store is unavailable."""
        self._checks[name] = check
        _AVAILABLE.labels(name).set(1)

    def set_unavailable(self, name: str, reason: str) -> None:
        """Report a dependency as unavailable, which does not affect readiness."""
        self._unavailable[name] = reason
        _AVAILABLE.labels(name).set(0)

    def set_available(self, name: str) -> None:
        """Undo `set_unavailable` for `name`."""
        self._unavailable.pop(name, None)
        _AVAILABLE.labels(name).set(1)

    def set_unready(self, name: str, reason: str) -> None:
        """Report the process as not ready, because of `name`: a dependency, or a part of the process."""
        self._unready[name] = reason

    def set_ready(self, name: str) -> None:
        """Undo `set_unready` for `name`."""
        self._unready.pop(name, None)

    def unready_reasons(self) -> dict[str, str]:
        """Return why the process is not ready, by the name of the dependency or part. Empty if the process is ready."""
        if self.draining:
            return {"process": "draining"}
        if not self.started:
            return dict(self._unready) or {"process": "starting"}
        return dict(self._unready)

    async def unavailable_dependencies(self) -> dict[str, str]:
        """Run the checks, which take up to 1 s. Return why dependencies are unavailable, by name. Update the metric."""
        reasons = dict(self._unavailable)

        async def run(name: str, check: Check) -> None:
            try:
                async with asyncio.timeout(1):
                    await check()
            except Exception as e:
                reasons[name] = _first_line(e)
            _AVAILABLE.labels(name).set(name not in reasons)

        await asyncio.gather(*(run(name, check) for name, check in self._checks.items()))
        return reasons

    async def wait_for(self, name: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Retry `attempt` with back-off until it succeeds, and return its result.

        Meanwhile, the process is reported as not ready because of `name`. Each reason for a failure is logged once, and
        at most five are logged.
        """
        tries = 0
        logged: set[str] = set()
        while True:
            try:
                result = await attempt()
            except Exception as e:
                reraise_if_cancelled()
                tries += 1
                reason = _first_line(e)
                self.set_unready(name, reason)
                # The reason can change: for example, from a refused connection to a wrong password.
                if reason not in logged and len(logged) < 5:
                    logged.add(reason)
                    log.warning("waiting for dependency", dependency=name, reason=reason)
                # Attempts are frequent, so that the process starts as soon as the dependency is available.
                await asyncio.sleep(0.02 + backoff(tries, base_seconds=0.02, max_seconds=0.25))
            else:
                self.set_ready(name)
                if tries:
                    log.info("dependency available", dependency=name)
                return result


def _first_line(e: BaseException) -> str:
    text = str(e).strip().splitlines()
    return (text[0] if text else type(e).__name__)[:200]


class Admin:
    """The ASGI app of the admin port: /healthz, /readyz and /metrics."""

    def __init__(self, health: Health, registry: CollectorRegistry) -> None:
        self._health = health
        self._registry = registry

    async def __call__(self, scope: Any, _: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/healthz":
            await _respond(send, 200, {"status": "alive"})
        elif path == "/readyz":
            body: dict[str, Any] = {"status": "ready"}
            if unavailable := await self._health.unavailable_dependencies():
                body["unavailable"] = unavailable
            if reasons := self._health.unready_reasons():
                body |= {"status": "unready", "reasons": reasons}
            await _respond(send, 503 if reasons else 200, body)
        elif path == "/metrics":
            await self._health.unavailable_dependencies()
            metrics = await asyncio.get_running_loop().run_in_executor(None, generate_latest, self._registry)
            await _respond(send, 200, metrics, CONTENT_TYPE_LATEST)
        else:
            await _respond(send, 404, {"status": "not found"})


async def _respond(send: Any, status: int, body: Any, content_type: str = "application/json") -> None:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
