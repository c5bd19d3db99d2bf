"""`python -m market.orders reconcile [--repair] [--json] [--topic]`: the only way to start a reconciliation.

It needs the service's configuration; the service need not be running.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import aclosing

import msgspec

from market.kit.process.lifecycle import Process
from market.kit.text import pluralize
from market.orders.app import connect
from market.orders.config import Config
from market.orders.reconciliation.reconcile import Difference, OutputLine, Progress, Summary, reconcile
from market.orders.reconciliation.scratch import ScratchDatabase
from market.orders.reconciliation.topic_reader import TopicReader
from market.orders.service import Deps

_USAGE = "reconcile [--repair] [--json] [--topic]"
_OPTIONS = ("--repair", "--json", "--topic")


async def run(config: Config, arguments: list[str]) -> int:
    """Reconcile, and print the differences and the summary to standard output.

    With --json, print one object per line, progress included. Return the exit status: 0 if no differences remain, 1 if
    some do, 2 for invalid arguments or an incomplete run.
    """
    unknown = [a for a in arguments if a not in _OPTIONS]
    if unknown:
        print(f"unknown option {unknown[0]}; usage: {_USAGE}", file=sys.stderr)
        return 2
    summary: Summary | None = None
    async with connect(config, Process()) as deps:
        async for line in lines(deps, config, repair="--repair" in arguments, topic="--topic" in arguments):
            if isinstance(line, Summary):
                summary = line
            if "--json" in arguments:
                print(msgspec.json.encode(line).decode(), flush=True)
            else:
                show(line)
    if summary is None or not summary.complete:
        return 2
    return 1 if summary.differences > summary.repaired else 0


async def lines(deps: Deps, config: Config, *, repair: bool, topic: bool) -> AsyncIterator[OutputLine]:
    """Yield a reconciliation's progress and differences, and the summary last. `topic`: also read the topic."""
    scratch = ScratchDatabase()
    reader = TopicReader(config.kafka, scratch) if topic else None
    try:
        reconciliation = reconcile(
            deps,
            config.recovery,
            scratch,
            repair=repair,
            topic=reader,
            second_check_seconds=min(2.0, config.recovery.reject_after_seconds / 2),
        )
        async with aclosing(reconciliation) as stream:  # type: ignore[type-var]
            async for line in stream:
                yield line
    finally:
        if reader is not None:
            await reader.close()
        scratch.close()


def show(line: OutputLine) -> None:
    """Print a line in human-readable form. Progress goes to standard error, and only if that is a terminal."""
    if isinstance(line, Progress):
        if sys.stderr.isatty():
            total = line.total if line.total is not None else "?"
            print(f"\r{line.step}: {line.done} of {total}  ", end="", file=sys.stderr, flush=True)
    elif isinstance(line, Difference):
        state = {None: "", True: " [repaired]", False: " [not repaired]"}[line.repaired]
        print(f"{line.difference} {line.id}{state}: {line.detail}. Likely cause: {line.cause}")
    else:
        compared = f"{pluralize(line.orders, 'order')}, {pluralize(line.reservations, 'reservation')}"
        if line.messages is not None:
            compared += f", {pluralize(line.messages, 'event')}"
        error = f"; not finished: {line.error}" if line.error else ""
        found = pluralize(line.differences, "difference")
        print(f"compared {compared} in {line.seconds} s: {found}, {line.repaired} repaired{error}")
