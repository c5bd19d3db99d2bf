"""Execution plans, without what differs from one execution to the next and says little."""

from __future__ import annotations

import re
from typing import Any

_OMITTED = re.compile(r"^ *(Index Searches|Storage|Heap Fetches|Sort Method|Planning|Execution)\b.*")
# The function is inlined.
_NAME_SORT_KEY = re.compile(r"\(\(\(CASE WHEN \(octet_length\((?:\w+\.)?name\).*?\|\| (?:\w+\.)?name\)\)::text")
_ROWS = re.compile(r" \(actual rows=(\d+)\.00 loops=1\)")


async def explain(conn: Any, statement: str, arguments: tuple[object, ...] | list[object]) -> list[str]:
    """Execute the statement and return the lines of its plan, with numbers of rows."""
    rows = await conn.fetch(
        f"EXPLAIN (ANALYZE, COSTS OFF, BUFFERS OFF, TIMING OFF, SUMMARY OFF) {statement}", *arguments
    )
    lines = [row[0] for row in rows if not _OMITTED.match(row[0])]
    return [_ROWS.sub(r" (rows=\1)", _NAME_SORT_KEY.sub("name_sort_key(name)", line)) for line in lines]
