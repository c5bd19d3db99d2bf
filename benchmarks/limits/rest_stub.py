"""A stub of the REST services behind the gateways: products and orders in one process, responses from memory.

python -m benchmarks.limits.rest_stub PORT FILE, FILE being a JSON object with the bodies `list`, `ids` and `orders`.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import uvloop


class Stub(asyncio.Protocol):
    def __init__(self, responses: dict[str, bytes]) -> None:
        self.responses = responses

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        # The gateways send each request without a body and in one piece. The path is in the first line.
        name = "orders" if data.startswith(b"GET /api/order") else "ids" if b"ids=" in data[:40] else "list"
        self.transport.write(self.responses[name])


async def main(port: int, file: str) -> None:
    responses = {}
    for name, value in json.loads(Path(file).read_text()).items():
        body = json.dumps(value, separators=(",", ":")).encode()
        header = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        responses[name] = header + body
    server = await asyncio.get_running_loop().create_server(lambda: Stub(responses), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
