"""The import as a whole: its limits, and the turn that each request with a job waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from market.kit.errors import Overloaded
from market.storefront.clients import GatewayClient
from market.storefront.config import Imports
from market.storefront.importing import files, job, steps
from market.storefront.importing.job import Job
from market.storefront.session.cookies import CookieJar

# How long one request compares or changes products. It has twelve seconds, and its last calls may take some.
STEP_SECONDS = 7.0
# Where the page goes on by itself: how often its progress is shown.
BRIEF_STEP_SECONDS = 2.0
# How long a request waits for its turn.
MAX_WAIT_SECONDS = 4.0
_RETRY_SECONDS = 2
# What a form has besides.
_FORM_BYTES = 16_384


class Importer:
    """Reads files, and does steps of jobs, for a limited number of requests at the same time.

    max_body_bytes: what a request may have, with a file or with a job in its form
    max_wait_seconds: how long a request waits for its turn
    """

    def __init__(
        self,
        gateway: GatewayClient,
        jar: CookieJar,
        limits: Imports,
        *,
        max_body_bytes: int,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
    ) -> None:
        self.max_rows = limits.max_rows
        self._max_job_bytes = max_body_bytes - _FORM_BYTES
        self.max_file_bytes = min(limits.max_file_bytes, self._max_job_bytes)
        self._max_calls = limits.max_calls
        self._gateway = gateway
        self._jar = jar
        self._max_wait_seconds = max_wait_seconds
        self._turns = asyncio.Semaphore(limits.max_in_flight)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the turn of this request, in which it may hold a file or a job. Raises Overloaded."""
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise Overloaded("too many imports at the same time", retry_after=_RETRY_SECONDS) from None
        try:
            yield
        finally:
            self._turns.release()

    async def read(self, data: bytes, name: str, *, stock: int | None, session_id: str) -> Job:
        """Return the job of a file. Raises InvalidFile."""
        # In a thread, because a large file takes a second.
        contents = await asyncio.to_thread(files.read, data, name, stock=stock, max_rows=self.max_rows)
        return Job.of(contents, name, session_id)

    async def step(self, work: Job, seconds: float) -> int | None:
        """Do the next step of the job, beginning nothing after so many seconds.

        A job that was started creates and changes products, as its dry run has shown; another one is compared. Return
        after how many seconds to go on if the shop did not respond; else None.
        """
        phase = steps.run if work.is_started else steps.compare
        interruption = await phase(self._gateway, work, steps.Pace(seconds, self._max_calls))
        return None if interruption is None else max(1, interruption.retry_after)

    async def pack(self, work: Job) -> str:
        """Return the job as text for the page. Raises TooLarge."""
        return await asyncio.to_thread(job.pack, work, self._jar, self._max_job_bytes)

    async def unpack(self, text: str, session_id: str) -> Job:
        """Return the job that the page had. Raises Malformed."""
        return await asyncio.to_thread(job.unpack, text, self._jar, session_id)
