"""`python -m market.orders reconcile [--repair] [--json] [--topic]`: starts a reconciliation.

It uses the service's configuration. The service need not be running.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import msgspec

from market.kit.errors import Unavailable
from market.kit.process.lifecycle import Process
from market.kit.text import pluralize
from market.orders.app import connect
from market.orders.config import Config
from market.orders.reconciliation.reconcile import Difference, OutputRecord, Progress, Summary, reconcile
from market.orders.reconciliation.scratch import ScratchDatabase
from market.orders.reconciliation.topic_reader import TopicReader
from market.orders.service import Deps

_USAGE = "reconcile [--repair] [--json] [--topic]"
_OPTIONS = ("--repair", "--json", "--topic")


async def run(config: Config, arguments: list[str]) -> int:
    """Reconcile, and print the differences and the summary to standard output.

    With --json, print one JSON object per line, and also the progress. Return the exit status: 0 if no differences
    remain, 1 if some do, 2 for invalid arguments or an incomplete run.
    """
    unknown = [a for a in arguments if a not in _OPTIONS]
    if unknown:
        print(f"unknown option {unknown[0]}; usage: {_USAGE}", file=sys.stderr)
        return 2
    summary: Summary | None = None
    async with connect(config, Process()) as deps:
        async for record in records(deps, config, repair="--repair" in arguments, topic="--topic" in arguments):
            if isinstance(record, Summary):
                summary = record
            if "--json" in arguments:
                print(msgspec.json.encode(record).decode(), flush=True)
            else:
                show(record)
    if summary is None or not summary.complete:
        return 2
    return 1 if summary.differences > summary.repaired else 0


async def records(
    deps: Deps, config: Config, *, repair: bool, topic: bool, directory: str | None = None
) -> AsyncIterator[OutputRecord]:
    """Yield a reconciliation's progress and differences, and the summary last.

    topic: also read the topic
    directory: of the scratch database; by default, the system's directory for temporary files
    """
    async with AsyncExitStack() as stack:
        try:
            scratch = ScratchDatabase(directory)
            stack.callback(scratch.close)
            reader = TopicReader(config.kafka, scratch) if topic else None
        except Unavailable as e:
            yield Summary(0, 0, None, 0, 0, seconds=0.0, complete=False, error=str(e))
            return
        if reader is not None:
            stack.push_async_callback(reader.close)
        reconciliation = reconcile(
            deps,
            config.recovery,
            scratch,
            repair=repair,
            topic=reader,
            second_check_seconds=min(2.0, config.recovery.reject_after_seconds / 2),
        )
        async with aclosing(reconciliation) as stream:  # type: ignore[type-var]
            async for record in stream:
                yield record


def show(record: OutputRecord) -> None:
    """Print a record in human-readable form. Progress goes to standard error, and only if that is a terminal."""
    if isinstance(record, Progress):
        if sys.stderr.isatty():
            total = record.total if record.total is not None else "?"
            print(f"\r{record.step}: {record.done} of {total}  ", end="", file=sys.stderr, flush=True)
    elif isinstance(record, Difference):
        state = {None: "", True: " [repaired]", False: " [not repaired]"}[record.repaired]
        print(f"{record.difference_type} {record.id}{state}: {record.detail}. Likely cause: {record.cause}")
    else:
        compared = f"{pluralize(record.orders, 'order')}, {pluralize(record.reservations, 'reservation')}"
        if record.messages is not None:
            compared += f", {pluralize(record.messages, 'event')}"
        error = f"; not finished: {record.error}" if record.error else ""
        found = pluralize(record.differences, "difference")
        print(f"compared {compared} in {record.seconds} s: {found}, {record.repaired} repaired{error}")
