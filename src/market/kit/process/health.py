"""Whether the process is alive, whether it can serve, and its figures: the admin port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from market.kit.process import logs
from market.kit.resilience import backoff, reraise_if_cancelled

T = TypeVar("T")
log = logs.get_logger("health")

Check = Callable[[], Awaitable[None]]
Handler = Callable[[Any, Any, Any], Awaitable[None]]


class Health:
    """What is missing. Ready means: started, not draining, and each check passes within a second."""

    def __init__(self) -> None:
        self.started = False
        self.draining = False
        self._missing: dict[str, str] = {}
        self._checks: dict[str, Check] = {}

    def add_check(self, name: str, check: Check) -> None:
        """Adds a readiness check of the service's own store: it raises where the store does not answer."""
        self._checks[name] = check

    def set_missing(self, name: str, reason: str | None) -> None:
        """Says that `name` is missing, and why; None: it is there."""
        if reason is None:
            self._missing.pop(name, None)
        else:
            self._missing[name] = reason

    async def not_ready(self) -> dict[str, str]:
        """Name and reason of each thing that is missing; empty: ready."""
        if self.draining:
            return {"process": "draining"}
        missing = dict(self._missing)
        if not self.started:
            return missing or {"process": "starting"}

        async def ask(name: str, check: Check) -> None:
            try:
                async with asyncio.timeout(1):
                    await check()
            except Exception as e:
                missing[name] = _short(e)

        await asyncio.gather(*(ask(n, c) for n, c in self._checks.items()))
        return missing

    async def wait_for(self, name: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """The attempt's result, tried until it succeeds. Says once for each reason that it waits, and once that it need not any more."""
        tries = 0
        said: set[str] = set()
        while True:
            try:
                result = await attempt()
            except Exception as e:
                reraise_if_cancelled()
                tries += 1
                reason = _short(e)
                self.set_missing(name, reason)
                # Another reason is worth another line: not there first, and then a wrong password.
                if reason not in said and len(said) < 5:
                    said.add(reason)
                    log.warning(f"waiting for {name}", reason=reason)
                # A store that comes up is worth several looks a second: every start waits for it.
                await asyncio.sleep(0.02 + backoff(tries, base=0.02, max_seconds=0.25))
            else:
                self.set_missing(name, None)
                if tries:
                    log.info(f"{name} is there")
                return result


def _short(e: BaseException) -> str:
    text = str(e).strip().splitlines()
    return (text[0] if text else type(e).__name__)[:200]


class Admin:
    """The ASGI app of the admin port: /healthz, /readyz, /metrics, and what a service adds.

    `routes` maps "METHOD /path" to a plain ASGI handler.
    """

    def __init__(self, health: Health, registry: CollectorRegistry, routes: dict[str, Handler] | None = None) -> None:
        self._health = health
        self._registry = registry
        # The same dictionary: a service adds to it while it is built.
        self.routes: dict[str, Handler] = {} if routes is None else routes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/healthz":
            await _answer(send, 200, {"status": "alive"})
        elif path == "/readyz":
            missing = await self._health.not_ready()
            await _answer(
                send,
                503 if missing else 200,
                {"status": "unready", "missing": missing} if missing else {"status": "ready"},
            )
        elif path == "/metrics":
            body = await asyncio.get_running_loop().run_in_executor(None, generate_latest, self._registry)
            await _answer(send, 200, body, CONTENT_TYPE_LATEST)
        elif handler := self.routes.get(f"{scope['method']} {path}"):
            await handler(scope, receive, send)
        else:
            await _answer(send, 404, {"status": "not found"})


async def _answer(send: Any, status: int, body: Any, content_type: str = "application/json") -> None:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
