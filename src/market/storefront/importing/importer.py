"""The import as a whole: its limits, and the semaphore that limits concurrent requests with a job."""

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

# For how long a request starts new calls to the shop. Its deadline is 12 s, which leaves time for the last ones.
STEP_SECONDS = 7.0
# The same if the page continues automatically: the progress is shown once per step.
BRIEF_STEP_SECONDS = 2.0
# How long a request waits for the semaphore.
MAX_WAIT_SECONDS = 4.0
_RETRY_SECONDS = 2
# The size of the other fields of a form.
_FORM_BYTES = 16_384


class Importer:
    """Reads files, and does the steps of jobs, for a limited number of concurrent requests.

    max_body_bytes: the maximum size of a request, which has a file or a job in its form
    max_wait_seconds: how long a request waits if too many others are being handled
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
        self._slots = asyncio.Semaphore(limits.max_in_flight)

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Admit a request with a file or a job, once there are few enough others. Raises Overloaded."""
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise Overloaded("too many concurrent imports", retry_after=_RETRY_SECONDS) from None
        try:
            yield
        finally:
            self._slots.release()

    async def read(self, data: bytes, name: str, *, stock: int | None, session_id: str) -> Job:
        """Return the job of a file. Raises InvalidFile."""
        # In a thread, because a large file takes a second.
        contents = await asyncio.to_thread(files.read, data, name, stock=stock, max_rows=self.max_rows)
        return Job.of(contents, name, session_id)

    async def step(self, work: Job, seconds: float) -> int | None:
        """Do the next step of the job: after its start, create and change products; before, compare them.

        seconds: after this time no more rows are started. Return None, or the seconds after which to continue if the
        shop was unavailable.
        """
        phase = steps.run if work.is_started else steps.compare
        interruption = await phase(self._gateway, work, steps.Pace(seconds, self._max_calls))
        return None if interruption is None else max(1, interruption.retry_after)

    async def pack(self, work: Job) -> str:
        """Return the job as text for the page. Raises TooLarge."""
        return await asyncio.to_thread(job.pack, work, self._jar, self._max_job_bytes)

    async def unpack(self, text: str, session_id: str) -> Job:
        """Return the job in the text of a page. Raises Malformed."""
        return await asyncio.to_thread(job.unpack, text, self._jar, session_id)
