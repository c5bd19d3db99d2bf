"""One process at a time is dead: what still works, what the client gets, and how soon all is whole again.

The table of docs/operations.md says the same; with MARKET_WRITE_TABLE=1 what is measured is written into it.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from what_still_works import HEALTHY, Answers, Shop, asked, dead, until_healthy

from market.local import spawn, table
from market.local.stack import Stack

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"

# What differs from health while it is dead.
ANSWERS: dict[str, dict[str, str]] = {
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
        "graphql": "null at product, the join",
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
        "read products": "no answer",
        "change a product": "no answer",
        "set a stock": "no answer",
        "place": "503",
        "graphql": "null at product, the join",
        "graphql create": "UNAVAILABLE",
    },
    "orders": {
        "place": "no answer",
        "read orders": "no answer",
        "cancel": "no answer",
        "graphql": "null at orders",
        "graphql create": "UNAVAILABLE",
    },
    "graphql": {"graphql": "no answer", "graphql create": "no answer"},
}
# What the mails about orders placed meanwhile need.
MAIL_WAITS = {"kafka", "mail", "notifications"}
# From the moment at which the process is ready again to the first good answer of every call.
BACK_SECONDS = 2.0
# No answer takes longer than the deadline of its call and what the way takes.
SLOWEST_SECONDS = {"place": 10.5, "graphql create": 10.5}


@pytest.fixture(scope="module")
async def stack(server_directory: Path) -> AsyncIterator[Stack]:
    bases = spawn.free_ports()
    base = next(b for b in bases if all(spawn.is_free(port) for port in table.ports(b).values()))
    overrides = {
        # Forgotten before it is read again.
        "products": {"availability": {"ttl_seconds": 0.1}},
        "notifications": {"smtp": {"timeout_seconds": 3, "reconnect_seconds": 1}},
    }
    async with Stack(table.Options(server_directory / "still-works", port_base=base, overrides=overrides)) as made:
        await made.start()
        yield made


@pytest.fixture(scope="module")
async def shop(stack: Stack) -> AsyncIterator[Shop]:
    async with httpx.AsyncClient(timeout=15) as http:
        yield await Shop.opened(stack, http)


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[str, str]]:
    """The rows of the table, by what was dead."""
    rows: dict[str, str] = {}
    yield rows
    if os.environ.get("MARKET_WRITE_TABLE"):
        lines = OPERATIONS.read_text("utf-8").splitlines()
        OPERATIONS.write_text("\n".join(rows.get(name_of(line), line) for line in lines) + "\n", "utf-8")


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def name_of(line: str) -> str:
    """What was dead in a row of the table of measurements; empty: the line is none."""
    cells = cells_of(line)
    return cells[0] if len(cells) == 11 and cells[0] in ANSWERS else ""


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_does_not_need_it_still_works_and_all_is_whole_soon_after(
    stack: Stack, shop: Shop, measured: dict[str, str], name: str
) -> None:
    await shop.prepare()
    usual = {call: answers.seconds[0] for call, answers in (await asked(shop, rounds=1, pause=0)).items()}
    await shop.prepare()
    began = time.monotonic()
    async with dead(stack, name):
        if name in ("inventory", "postgres"):
            # What was just looked up is still answered from the cache, for 5 s and a fifth.
            await asyncio.sleep(6.2)
        found = await asked(shop, rounds=2, pause=0.4)
    await stack.ready([name], seconds=60)
    down = time.monotonic() - began
    whole = await until_healthy(shop, 30)
    if name == "kafka" and stack.kafka_kind == "embedded":
        # It keeps everything in memory: what was on its way is gone with it.
        shop.mailboxes.clear()
    mails = await seconds_to_the_mails(shop)
    first = max(whole.values())
    measured[name] = row(name, found, first, mails)
    print(f"\n{name}: down for {down:.1f} s; back after {first:.2f} s; mails after {mails:.2f} s")
    expected = {call: [ANSWERS[name].get(call, word)] * 2 for call, word in HEALTHY.items()}
    assert {call: answers.words for call, answers in found.items()} == expected
    slow = {call: a.seconds for call, a in found.items() if max(a.seconds) - usual[call] > SLOWEST_SECONDS.get(call, 3.5)}
    assert not slow
    # What a call takes in health, on this machine at this moment, is not the dead one's doing.
    late = {call: seconds for call, seconds in whole.items() if seconds - usual[call] > BACK_SECONDS}
    assert not late, f"not back within {BACK_SECONDS} s after {name} was ready"


async def seconds_to_the_mails(shop: Shop) -> float:
    """How long it takes until each order placed meanwhile has its mail."""
    began = time.monotonic()
    while shop.mailboxes:
        while not await shop.mails(shop.mailboxes[-1]):
            assert time.monotonic() - began < 30, "a mail is missing"
        shop.mailboxes.pop()
    return time.monotonic() - began


def row(name: str, found: dict[str, Answers], back: float, mails: float) -> str:
    """A line of the table in docs/operations.md."""
    cells = [f"{said(name, call)} ({max(found[call].seconds):.1f} s)" for call in HEALTHY]
    mailed = f"wait; {mails:.1f} s" if name in MAIL_WAITS else "sent"
    return f"| {name} | " + " | ".join(cells) + f" | {mailed} | {back:.1f} s |"


def said(name: str, call: str) -> str:
    return ANSWERS[name].get(call, HEALTHY[call])


def test_the_table_says_what_is_measured() -> None:
    """Its words are those asserted above; its seconds are of a machine and a day."""
    rows = {name_of(line): cells_of(line) for line in OPERATIONS.read_text("utf-8").splitlines() if name_of(line)}
    assert rows.keys() == ANSWERS.keys()
    for name, cells in rows.items():
        for call, cell in zip(HEALTHY, cells[1:], strict=False):
            assert re.fullmatch(rf"{re.escape(said(name, call))} \(\d+\.\d s\)", cell), f"{name}, {call}: {cell}"
