"""One process at a time is down: what still works, what clients get, and how soon everything works again.

The table of docs/operations.md says the same; with MARKET_WRITE_TABLE=1 the measurements are written into it.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from market_dev.stack.stack import Stack
from market_dev.stack.topology import Options

from tests.chaos.outage_probe import HEALTHY, Probe, Results, call_all, down, wait_until_healthy
from tests.support.ports import free_port_base
from tests.support.waiting import until

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"

# The results that differ from the healthy ones while a process is down.
DEVIATIONS: dict[str, dict[str, str]] = {
    "redis": {},
    "mail": {},
    "notifications": {},
    "kafka": {},
    "inventory": {
        "read products": "200, available: null",
        "set a stock": "503",
        "place": "503",
        "cancel": "202",
        "graphql": "available: null",
        "graphql create": "UNAVAILABLE",
    },
    "postgres": {
        "read products": "503",
        "change a product": "503",
        "set a stock": "503",
        "place": "503",
        "cancel": "202",
        "graphql": "null at product, orders.items.items.product",
        "graphql create": "UNAVAILABLE",
    },
    "mongodb": {
        "place": "503",
        "read orders": "503",
        "cancel": "503",
        "graphql": "null at orders",
        "graphql create": "UNAVAILABLE",
    },
    "products": {
        "read products": "no response",
        "change a product": "no response",
        "set a stock": "no response",
        "place": "503",
        "graphql": "null at product, orders.items.items.product",
        "graphql create": "UNAVAILABLE",
    },
    "orders": {
        "place": "no response",
        "read orders": "no response",
        "cancel": "no response",
        "graphql": "null at orders",
        "graphql create": "UNAVAILABLE",
    },
    "graphql": {"graphql": "no response", "graphql create": "no response"},
}
# The processes whose outage delays mails.
DELAYS_MAILS = {"kafka", "mail", "notifications"}
# From the moment the process is ready again to the first healthy result of every call.
MAX_RECOVERY_SECONDS = 2.0
# A measurement that took too long is repeated: the machine itself may stall for seconds.
ATTEMPTS = 3
# No call takes longer than its deadline plus some overhead.
MAX_CALL_SECONDS = {"place": 10.5, "graphql create": 10.5}
DEFAULT_MAX_CALL_SECONDS = 3.5


@pytest.fixture(scope="module")
async def stack(server_directory: Path) -> AsyncIterator[Stack]:
    overrides = {
        # Expires before it is read again.
        "products": {"availability": {"ttl_seconds": 0.1}},
        "notifications": {"smtp": {"timeout_seconds": 3, "max_reconnect_seconds": 1}},
    }
    async with Stack(Options(server_directory / "outages", port_base=free_port_base(), overrides=overrides)) as stack:
        await stack.start()
        yield stack


@pytest.fixture(scope="module")
async def probe(stack: Stack) -> AsyncIterator[Probe]:
    async with httpx.AsyncClient(timeout=60) as http:
        yield await Probe.create(stack, http)


@pytest.fixture(scope="module")
def table_rows() -> Iterator[dict[str, str]]:
    """The measured rows of the table, by the process that was down."""
    rows: dict[str, str] = {}
    yield rows
    if os.environ.get("MARKET_WRITE_TABLE"):
        lines = OPERATIONS.read_text("utf-8").splitlines()
        OPERATIONS.write_text("\n".join(rows.get(process_of(line), line) for line in lines) + "\n", "utf-8")


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def process_of(line: str) -> str:
    """The process that was down in a row of the table of measurements; empty for any other line."""
    cells = cells_of(line)
    return cells[0] if len(cells) == 11 and cells[0] in DEVIATIONS else ""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", DEVIATIONS)
async def test_an_outage_affects_only_what_depends_on_the_process_and_ends_soon_after_it(
    stack: Stack, probe: Probe, table_rows: dict[str, str], name: str
) -> None:
    for _ in range(ATTEMPTS):
        table_rows[name], late = await take_down(stack, probe, name)
        if not late:
            return
    raise AssertionError(late)


async def take_down(stack: Stack, probe: Probe, name: str) -> tuple[str, list[str]]:
    """Kill the process once and probe. Return the table's row, and the complaints, which a stall may explain once."""
    await probe.prepare()
    usual = {call: results.seconds[0] for call, results in (await call_all(probe, rounds=1, pause_seconds=0)).items()}
    await probe.prepare()
    started = time.monotonic()
    async with down(stack, name):
        if name in ("inventory", "postgres"):
            # Cached availability is returned for up to 5 s and a fifth.
            await asyncio.sleep(8)
        results = await call_all(probe, rounds=2, pause_seconds=0.4)
    await stack.wait_ready([name], seconds=180)
    down_seconds = time.monotonic() - started
    recovery = await wait_until_healthy(probe, 60)
    if name == "kafka" and stack.kafka_kind == "embedded":
        # It keeps everything in memory, so events in flight are lost with it.
        probe.mailboxes.clear()
    mail_seconds = await wait_for_mails(probe)
    recovery_seconds = max(recovery.values())
    print(
        f"\n{name}: down for {down_seconds:.1f} s; recovered after {recovery_seconds:.2f} s; mails after "
        f"{mail_seconds:.2f} s"
    )
    late = []
    for call in HEALTHY:
        expected = expected_result(name, call)
        for word, seconds in zip(results[call].words, results[call].seconds, strict=True):
            # A healthy upstream that stalls looks like one that is down.
            if word != expected or seconds - usual[call] > MAX_CALL_SECONDS.get(call, DEFAULT_MAX_CALL_SECONDS):
                late.append(
                    f"{call} without {name}: {word}, expected {expected}, after {seconds:.1f} s, "
                    f"usually {usual[call]:.1f} s"
                )
        # The usual duration of a call on this machine, at this moment, is not part of the recovery.
        if recovery[call] - usual[call] > MAX_RECOVERY_SECONDS:
            late.append(
                f"{call}: recovered {recovery[call]:.1f} s after {name} was ready, expected at most "
                f"{MAX_RECOVERY_SECONDS} s"
            )
    return table_row(name, results, recovery_seconds, mail_seconds), late


async def wait_for_mails(probe: Probe) -> float:
    """Wait until each order placed meanwhile has its mail. Return the seconds waited."""
    started = time.monotonic()
    while probe.mailboxes:
        user = probe.mailboxes[-1]
        await until(partial(probe.count_mails, user), 120, f"the mail to {user}")
        probe.mailboxes.pop()
    return time.monotonic() - started


def table_row(name: str, results: dict[str, Results], recovery_seconds: float, mail_seconds: float) -> str:
    """A row of the table in docs/operations.md."""
    cells = [f"{expected_result(name, call)} ({max(results[call].seconds):.1f} s)" for call in HEALTHY]
    mails = f"delayed; {mail_seconds:.1f} s" if name in DELAYS_MAILS else "sent"
    return f"| {name} | " + " | ".join(cells) + f" | {mails} | {recovery_seconds:.1f} s |"


def expected_result(name: str, call: str) -> str:
    return DEVIATIONS[name].get(call, HEALTHY[call])


def test_the_table_of_measurements_matches_the_asserted_results() -> None:
    """Only the results; the seconds depend on the machine."""
    rows = {process_of(line): cells_of(line) for line in OPERATIONS.read_text("utf-8").splitlines() if process_of(line)}
    assert rows.keys() == DEVIATIONS.keys()
    for name, cells in rows.items():
        for call, cell in zip(HEALTHY, cells[1:], strict=False):
            expected = re.escape(expected_result(name, call))
            assert re.fullmatch(rf"{expected} \(\d+\.\d s\)", cell), f"{name}, {call}: {cell}"
