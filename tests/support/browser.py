"""Pages in a real browser, headless Chromium."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from market.kit.config import Http
from market.kit.http import edge
from market.kit.http.server import HttpServer
from tests.support.ports import free_port

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)


async def dump(url: str, profile: Path, *options: str, seconds: float = 150) -> str:
    """Open the URL, and return the document's HTML once its scripts are done."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=10000",
        *options,
        "--dump-dom",
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(seconds):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return out.decode()


@asynccontextmanager
async def page_on_another_origin(port: int, html: str) -> AsyncIterator[str]:
    """Serve the page at the root of its own port, and yield its URL."""

    async def page(_: Request) -> Response:
        return HTMLResponse(html)

    config = Http(port=port)
    server = HttpServer(edge.application({"GET /": page}, config), config.host, config.port, limits=config)
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        await server.stop(1)


def origin_port() -> tuple[str, int]:
    """Return an unused origin, and its port."""
    port = free_port()
    return f"http://127.0.0.1:{port}", port
