"""Reconciliation from outside: the route of the admin port, and `python -m market.orders reconcile`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from market.kit.process.lifecycle import Process
from market.orders.config import Config
from market.orders.reconcile import Difference, Line, Progress, Summary, reconcile
from market.orders.service import Shop
from market.orders.topic import Topic

_OPTIONS = ("repair", "topic")


async def lines(shop: Shop, config: Config, *, repair: bool, topic: bool) -> AsyncIterator[Line]:
    """What a reconciliation has to say, the summary last."""
    reader = Topic(config.kafka) if topic else None
    try:
        found = reconcile(
            shop,
            config.recovery,
            repair=repair,
            topic=reader,
            again_seconds=min(2.0, config.recovery.after_seconds / 2),
        )
        async with aclosing(found) as stream:  # type: ignore[type-var]
            async for line in stream:
                yield line
    finally:
        if reader is not None:
            await reader.close()


def route(shop: Shop, config: Config) -> Any:
    """`POST /reconcile?repair=0|1&topic=0|1`: newline-delimited JSON, the summary last."""

    async def serve(scope: Any, _: Any, send: Any) -> None:
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        wrong = [f"{k}={v}" for k, v in given.items() if k not in _OPTIONS or v not in ("0", "1")]
        status = 422 if wrong else 200
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/x-ndjson")]}
        )
        if wrong:
            problem = {"kind": "error", "detail": f"{wrong[0][:100]}: takes repair=0|1 and topic=0|1"}
            await send({"type": "http.response.body", "body": msgspec.json.encode(problem) + b"\n"})
            return
        async with aclosing(
            lines(shop, config, repair=given.get("repair") == "1", topic=given.get("topic") == "1")
        ) as stream:  # type: ignore[type-var]
            async for line in stream:
                await send({"type": "http.response.body", "body": msgspec.json.encode(line) + b"\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return serve


async def command(config: Config, args: list[str]) -> int:
    """reconcile [--repair] [--json] [--topic]. Exit status: 0: all agrees, or is mended; 1: differences are left; 2: not finished."""
    unknown = [a for a in args if a not in ("--repair", "--json", "--topic")]
    if unknown:
        print(f"unknown option {unknown[0]}: reconcile [--repair] [--json] [--topic]", file=sys.stderr)
        return 2
    from market.orders.app import shop

    summary: Summary | None = None
    async with shop(config, Process()) as made:
        async for line in lines(made, config, repair="--repair" in args, topic="--topic" in args):
            if isinstance(line, Summary):
                summary = line
            if "--json" in args:
                print(msgspec.json.encode(line).decode(), flush=True)
            else:
                _say(line)
    if summary is None or not summary.complete:
        return 2
    return 1 if summary.differences > summary.repaired else 0


def _say(line: Line) -> None:
    if isinstance(line, Progress):
        if sys.stderr.isatty():
            print(
                f"\r{line.step}: {line.done} of {line.total if line.total is not None else '?'}  ",
                end="",
                file=sys.stderr,
                flush=True,
            )
    elif isinstance(line, Difference):
        state = {None: "", True: " [mended]", False: " [not mended]"}[line.repaired]
        print(f"{line.difference} {line.id}{state}: {line.detail}. Likely cause: {line.cause}")
    else:
        read = f"{line.orders} orders, {line.reservations} reservations" + (
            f", {line.messages} events" if line.messages is not None else ""
        )
        end = f"; not finished: {line.error}" if line.error else ""
        print(f"compared {read} in {line.seconds} s: {line.differences} differences, {line.repaired} mended{end}")
