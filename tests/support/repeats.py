"""Requests with an Idempotency-Key, sent as clients send them: again while the outcome is unknown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

import httpx

from tests.support.waiting import PATIENCE


async def repeated_while_unknown(send: Callable[[], Awaitable[httpx.Response]]) -> list[httpx.Response]:
    """Send a request until its outcome is known, and return all responses.

    On a machine that stands still for a moment, a connection may not be there in time, which makes a result a 503.
    """
    responses = [await send()]
    end = time.monotonic() + PATIENCE
    while responses[-1].status_code == 503 and time.monotonic() < end:
        await asyncio.sleep(0.2)
        responses.append(await send())
    return responses


def assert_created_once(responses: Collection[Sequence[httpx.Response]]) -> None:
    """Check that one request, each time sent with `repeated_while_unknown`, has created one resource."""
    statuses = sorted(own[-1].status_code for own in responses)
    expected = [[200] * (len(statuses) - 1) + [201]]
    if any(len(own) > 1 for own in responses):
        # A 503 may have taken the place of the 201.
        expected.append([200] * len(statuses))
    assert statuses in expected, [[(r.status_code, r.text) for r in own] for own in responses]
    assert len({own[-1].json()["id"] for own in responses}) == 1
