"""`python -m benchmarks.explain_search URI`: the times of searches among a million products, and the plan of each kind.

URI: of a database of products that may be filled, such as that of `market up --empty`, on this machine. It gets
a million products.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from benchmarks import plans
from benchmarks.catalogue import fill_searchable_up_to
from market.products.domain import Sort
from market.products.search.pages import SETTINGS, SearchQuery, read_page

LIMIT = 20
# One of each kind, and in which order.
KINDS: list[tuple[str, str, Sort | None]] = [
    ("a common word", "red", None),
    ("a rare word", "teapot", None),
    ("a word of little more than 10,000 products", "coffee", None),
    ("several words", "white hanging heart", None),
    ("several common words", "pink heart", None),
    ("the beginning of a word", "chris", None),
    ("several words, the last one incomplete", "christmas ca", None),
    ("a phrase", '"christmas tree"', None),
    ("an excluded word, little more than 10,000 products", "umbrella -red", None),
    ("an alternative", "teapot OR lantern", None),
    ("part of an article number", "kl-4711", None),
    ("a common word, by price", "red", "price"),
    ("several words, by price", "white hanging heart", "price"),
    ("little more than 10,000 products, by name", "coffee", "name"),
    ("a slip of the finger", "teapto", None),
    ("slips in two words", "chrismas lantren", None),
    ("nothing like it", "zzzzqqqq", None),
]


class Recorder:
    """Executes statements as a connection does, and keeps them."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn
        self.statements: dict[str, tuple[object, ...]] = {}

    async def fetch(self, text: str, *arguments: object) -> Any:
        self.statements[text] = arguments
        return await self._conn.fetch(text, *arguments)

    async def fetchrow(self, text: str, *arguments: object) -> Any:
        rows = await self.fetch(text, *arguments)
        return rows[0] if rows else None

    async def fetchval(self, text: str, *arguments: object) -> Any:
        return (await self.fetchrow(text, *arguments))[0]


async def explain(conn: Any, words: str, sort: Sort | None) -> None:
    recorder: Any = Recorder(conn)
    await read_page(recorder, SearchQuery(words, LIMIT, 0, sort))
    for text, arguments in recorder.statements.items():
        if "product_search" in text or "search_vocabulary" in text:
            print(*(f"    {line}" for line in await plans.explain(conn, text, arguments)), sep="\n")


class Measured(NamedTuple):
    """Milliseconds of one search: in all, and of PostgreSQL's processor time, which waits for no other work."""

    wall: float
    cpu: float


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process on this machine (proc(5), schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def measure(conn: Any, words: str, sort: Sort | None) -> Measured:
    pid = conn.get_server_pid()
    cpu, wall = cpu_seconds(pid), time.perf_counter()
    await read_page(conn, SearchQuery(words, LIMIT, 0, sort))
    return Measured(1000 * (time.perf_counter() - wall), 1000 * (cpu_seconds(pid) - cpu))


def percentiles(found: list[Measured]) -> str:
    """Return the percentiles of both times in words."""
    texts = []
    for name, values in (("", sorted(m.wall for m in found)), (" of PostgreSQL's CPU", sorted(m.cpu for m in found))):
        texts.append(f"p50 {values[len(values) // 2]:.1f} ms, p99 {values[len(values) * 99 // 100]:.1f} ms{name}")
    return "; ".join(texts)


async def run(uri: str, count: int, times: int, *, shows_plans: bool) -> None:
    await fill_searchable_up_to(uri, count)
    conn = await asyncpg.connect(uri, command_timeout=600, server_settings=SETTINGS)
    found: dict[str, list[Measured]] = {title: [] for title, *_ in KINDS}
    kinds = KINDS * times
    random.shuffle(kinds)
    for title, words, sort in kinds:
        found[title].append(await measure(conn, words, sort))
    for title, words, sort in KINDS:
        page = await read_page(conn, SearchQuery(words, LIMIT, 0, sort))
        total = f"{'' if page.total_exact else 'more than '}{page.total}{' suggested' if page.suggested else ''}"
        print(f"{title}: {words}: {total}; {percentiles(found[title])}")
        if shows_plans:
            await explain(conn, words, sort)
    print(f"all: {percentiles([m for of_kind in found.values() for m in of_kind])}")
    await conn.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--plans", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.uri, arguments.count, arguments.times, shows_plans=arguments.plans))
