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
from market_dev.stack import processes as spawn
from market_dev.stack import topology as table
from market_dev.stack.stack import Stack
from what_still_works import HEALTHY, Answers, Shop, asked, dead, until_healthy

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
# What is measured is measured again where it was late: a machine that stands still for some seconds is no fault of the shop.
ATTEMPTS = 3
STILL_SECONDS = 1.0
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
    async with httpx.AsyncClient(timeout=60) as http:
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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ANSWERS)
async def test_what_does_not_need_it_still_works_and_all_is_whole_soon_after(
    stack: Stack, shop: Shop, measured: dict[str, str], name: str
) -> None:
    """In time, or it was the machine that stood still: a shop that is late is late each time."""
    for _ in range(ATTEMPTS):
        measured[name], late = await without(stack, shop, name)
        if not late:
            return
    raise AssertionError(late)


async def without(stack: Stack, shop: Shop, name: str) -> tuple[str, list[str]]:
    """Kills it once. Answers the row of the table, and what was not as it should be after an answer that took its time."""
    await shop.prepare()
    usual = {call: answers.seconds[0] for call, answers in (await asked(shop, rounds=1, pause=0)).items()}
    await shop.prepare()
    began = time.monotonic()
    async with dead(stack, name):
        if name in ("inventory", "postgres"):
            # What was just looked up is still answered from the cache, for 5 s and a fifth.
            await asyncio.sleep(8)
        found = await asked(shop, rounds=2, pause=0.4)
    await stack.ready([name], seconds=180)
    down = time.monotonic() - began
    whole = await until_healthy(shop, 60)
    if name == "kafka" and stack.kafka_kind == "embedded":
        # It keeps everything in memory: what was on its way is gone with it.
        shop.mailboxes.clear()
    mails = await seconds_to_the_mails(shop)
    first = max(whole.values())
    print(f"\n{name}: down for {down:.1f} s; back after {first:.2f} s; mails after {mails:.2f} s")
    late = []
    for call, word in HEALTHY.items():
        right = ANSWERS[name].get(call, word)
        for said, seconds in zip(found[call].words, found[call].seconds, strict=True):
            # What is wrong at once is wrong; a healthy neighbour that stands still is answered for as a dead one.
            assert said == right or seconds - usual[call] > STILL_SECONDS, (
                f"{call} without {name}: {said} instead of {right}"
            )
            if said != right or seconds - usual[call] > SLOWEST_SECONDS.get(call, 3.5):
                late.append(f"{call}: {said} instead of {right} after {seconds:.1f} s, {usual[call]:.1f} s in health")
        # What a call takes in health, on this machine at this moment, is not the dead one's doing.
        if whole[call] - usual[call] > BACK_SECONDS:
            late.append(
                f"{call}: not back within {BACK_SECONDS} s after {name} was ready, but after {whole[call]:.1f} s"
            )
    return row(name, found, first, mails), late


async def seconds_to_the_mails(shop: Shop) -> float:
    """How long it takes until each order placed meanwhile has its mail."""
    began = time.monotonic()
    while shop.mailboxes:
        while not await shop.mails(shop.mailboxes[-1]):
            assert time.monotonic() - began < 120, "a mail is missing"
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
