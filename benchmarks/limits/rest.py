"""The REST answers behind the gateways, served from memory: products and orders in one process.

python -m benchmarks.limits.rest PORT FILE, FILE being a JSON object with the bodies `list`, `ids` and `orders`.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import uvloop


class Answering(asyncio.Protocol):
    def __init__(self, bodies: dict[str, bytes]) -> None:
        self.bodies = bodies

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        # A request without a body, whole in one piece: what the gateways send. The path is within the first line.
        name = "orders" if data.startswith(b"GET /api/order") else "ids" if b"ids=" in data[:40] else "list"
        self.transport.write(self.bodies[name])


async def main(port: int, file: str) -> None:
    bodies = {}
    for name, value in json.loads(Path(file).read_text()).items():
        body = json.dumps(value, separators=(",", ":")).encode()
        bodies[name] = (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
    server = await asyncio.get_running_loop().create_server(lambda: Answering(bodies), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
