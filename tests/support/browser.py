"""Pages in a real browser, headless Chromium."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from market.kit.config import Http
from market.kit.http import edge
from market.kit.http.server import HttpServer
from tests.support.ports import free_port
from tests.support.waiting import until

# The code of the protocol's errors, as in JSON-RPC, for a page that is no longer there.
_SERVER_ERROR = -32000
# The sources of the log's entries that are about a page's own faults.
_COMPLAINTS = ("security", "violation", "javascript", "rendering", "deprecation")
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


class Tab:
    """A tab that a test operates, by Chromium's DevTools protocol (https://chromedevtools.github.io)."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = count(1)
        # The URLs of all requests of the tab's pages, as they were sent.
        self.requests: list[str] = []
        # What the console says of the Content-Security-Policy and of scripts that fail.
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol, and return its result."""
        message = await self._reply(method, parameters)
        assert "error" not in message, message
        return message["result"]

    async def _reply(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        call_id = next(self._ids)
        await self._socket.send_json({"id": call_id, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=60)
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["source"] in _COMPLAINTS:
                self.complaints.append(message["params"]["entry"]["text"])
            if message.get("id") == call_id:
                return dict(message)

    async def open(self, url: str) -> None:
        """Go to the URL, without waiting for the page."""
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page; None if it throws, as it does between two pages."""
        parameters = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        message = await self._reply("Runtime.evaluate", parameters)
        if "error" in message:
            # The page was replaced by the next one during the call.
            assert message["error"]["code"] == _SERVER_ERROR, message
            return None
        result = message["result"]
        return None if "exceptionDetails" in result else result["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Return the value of the expression as soon as it is true."""
        return await until(lambda: self.evaluate(expression), what=expression, interval=0.1)

    async def screenshot(self, path: Path) -> None:
        """Write a picture of the page, a PNG, into the file."""
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot"))["data"]))


@asynccontextmanager
async def tab(profile: Path, *options: str) -> AsyncIterator[Tab]:
    """Start a browser with an empty tab."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--window-size=1280,800",
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        *options,
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        chosen = profile / "DevToolsActivePort"
        await until(lambda: chosen.exists() and "\n" in chosen.read_text())
        async with ClientSession() as session:
            targets = f"http://127.0.0.1:{chosen.read_text().split()[0]}/json/list"

            async def pages() -> list[dict[str, Any]]:
                async with session.get(targets) as response:
                    return [target for target in await response.json() if target["type"] == "page"]

            # The port may be open before the tab.
            [page] = await until(pages, what="a tab")
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=64 * 1024 * 1024) as socket:
                it = Tab(socket)
                await it.call("Page.enable")
                await it.call("Network.enable")
                await it.call("Log.enable")
                yield it
    finally:
        process.terminate()
        await process.wait()
