"""The limit of an HTTP service: a bare ASGI app that responds to every request with the same bytes from memory.

BODY_FILE=... uvicorn benchmarks.limits.static_asgi:app
"""

import os
from pathlib import Path

BODY = Path(os.environ["BODY_FILE"]).read_bytes()
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))],
}
REST = {"type": "http.response.body", "body": BODY}


async def app(scope, _receive, send):  # type: ignore[no-untyped-def]
    await send(START)
    await send(REST)
