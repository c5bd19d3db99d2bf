"""Hostile clients of all kinds: they hold connections, send slowly, do not read, or ask for as much as they can."""

from __future__ import annotations

import asyncio
import itertools
import random
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from benchmarks import http1
from benchmarks.hostile import requests

# What became of each connection or request: a status, "closed" by the server, "held" for two minutes, or "open" when
# the client itself was stopped.
Outcomes = Counter[str]
_HOST = b"host: localhost\r\n"
_MIB = 1024 * 1024
# The state of a TCP connection in the first byte of Linux' struct tcp_info.
_ESTABLISHED = 1
_HELD_SECONDS = 120


@dataclass(frozen=True)
class Targets:
    """The servers under attack.

    ports: of `products`, `orders` and `graphql`; clients of servers that are absent are left out
    product_ids: of existing products, up to 1,000 for the lines of an order
    long_product_ids: of up to 100 products with long descriptions
    address: of this machine, from which the clients connect
    """

    ports: Mapping[str, int]
    product_ids: Sequence[str] = ()
    long_product_ids: Sequence[str] = ()
    address: str = "127.0.0.1"


@dataclass(frozen=True)
class Client:
    """One client: its server's port, and what became of its requests."""

    port: int
    targets: Targets
    outcomes: Outcomes

    async def connect(self, receive_buffer: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection. Raises OSError."""
        sock = socket.socket()
        try:
            sock.setblocking(False)
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.bind((self.targets.address, 0))
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
            return await asyncio.open_connection(sock=sock, limit=receive_buffer or 65536)
        except BaseException:
            sock.close()
            raise


Run = Callable[[Client], Coroutine[None, None, None]]


def hold(start: bytes, piece: bytes = b"") -> Run:
    """Send the start of a request, then a piece every second, until the server ends the connection."""

    async def attempt(client: Client) -> None:
        reader, writer = await client.connect()
        response = asyncio.ensure_future(reader.read(65536))
        try:
            writer.write(start)
            while not (await asyncio.wait([response], timeout=1))[0]:
                writer.write(piece)
            client.outcomes[_status(response.result())] += 1
        finally:
            response.cancel()
            writer.transport.abort()

    return _repeated(attempt, pause=1.0)


def never_read(make: Callable[[Targets], bytes]) -> Run:
    """Send a request, and read nothing of its response."""

    async def attempt(client: Client) -> None:
        _, writer = await client.connect(receive_buffer=4096)
        try:
            writer.write(make(client.targets))
            sock: socket.socket = writer.get_extra_info("socket")
            for _ in range(2 * _HELD_SECONDS):
                await asyncio.sleep(0.5)
                if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
                    client.outcomes["closed"] += 1
                    return
            client.outcomes["held"] += 1
        finally:
            writer.transport.abort()

    return _repeated(attempt, pause=0.5)


def endless_headers() -> Run:
    """Send up to 100 MiB of headers."""

    async def attempt(client: Client) -> None:
        reader, writer = await client.connect()
        response = asyncio.ensure_future(reader.read(65536))
        line = b"a: " + b"x" * 1000 + b"\r\n"
        try:
            writer.write(b"GET / HTTP/1.1\r\n" + _HOST)
            for _ in range(100 * _MIB // (64 * len(line))):
                if response.done():
                    break
                writer.write(line * 64)
                await writer.drain()
            client.outcomes[_status(await response)] += 1
        finally:
            response.cancel()
            writer.transport.abort()

    return _repeated(attempt, pause=1.0)


def send(make: Callable[[Targets], Iterable[bytes]], pause: float) -> Run:
    """Send requests one after another, each on a connection of its own, and read the responses."""

    async def run(client: Client) -> None:
        endless: Iterator[bytes] = itertools.cycle(make(client.targets))

        async def attempt(client: Client) -> None:
            reader, writer = await client.connect()
            try:
                writer.write(next(endless))
                client.outcomes[await _read_response(reader)] += 1
            finally:
                writer.transport.abort()

        await _repeated(attempt, pause)(client)

    return run


def _repeated(attempt: Run, pause: float) -> Run:
    async def run(client: Client) -> None:
        # So that not all begin at the same time.
        await asyncio.sleep(random.uniform(0, pause))
        while True:
            try:
                async with asyncio.timeout(600):
                    await attempt(client)
            except (OSError, EOFError, ValueError):
                # Includes TimeoutError. The server has reset the connection, or accepts none.
                client.outcomes["closed"] += 1
            except asyncio.CancelledError:
                client.outcomes["open"] += 1
                raise
            await asyncio.sleep(random.uniform(0.5, 1.5) * pause)

    return run


def _status(response: bytes) -> str:
    return response[9:12].decode("ascii", "replace") or "closed"


async def _read_response(reader: asyncio.StreamReader) -> str:
    """Return the status, after the whole response."""
    line = await reader.readline()
    length = 0
    while (header := await reader.readline()) not in (b"\r\n", b""):
        if header.lower().startswith(b"content-length:"):
            length = int(header.split(b":")[1])
    while length > 0 and (data := await reader.read(_MIB)):
        length -= len(data)
    return _status(line)


@dataclass(frozen=True)
class Kind:
    """One kind of hostile clients.

    servers: which it attacks
    count: clients per server
    """

    run: Run
    count: int
    servers: tuple[str, ...] = ("products", "orders", "graphql")


_PATHS = {"products": "/api/product", "orders": "/api/order", "graphql": "/graphql"}


def _large_page(server: str, **headers: str) -> Callable[[Targets], bytes]:
    """Return the largest page of the server: 4 MiB of products, or 8 MiB of orders."""

    def make(targets: Targets) -> bytes:
        match server:
            case "products":
                return http1.request("GET", f"/api/product?ids={','.join(targets.long_product_ids)}", **headers)
            case "orders":
                return http1.request("GET", f"/api/order?user={requests.USER}&limit=1000", **headers)
            case _:
                return requests.graphql_requests()["all orders"][0]

    return make


def _compressed_page(server: str) -> Callable[[Targets], Iterable[bytes]]:
    return lambda targets: [_large_page(server, accept_encoding="gzip")(targets)]


def _always(several: Sequence[bytes]) -> Callable[[Targets], Iterable[bytes]]:
    return lambda _: several


def _graphql(name: str) -> Callable[[Targets], Iterable[bytes]]:
    return lambda targets: requests.graphql_requests(targets.long_product_ids)[name]


def _forged_keys(targets: Targets) -> Iterator[bytes]:
    """Orders with keys of others, keys that do not exist, and invalid ones."""
    ids = list(targets.product_ids[:2])
    for n in range(1000):
        yield requests.order(ids, idempotency_key=f"honest-{n}")
        yield requests.order(ids[:1], 2, idempotency_key=f"honest-{n}")
        yield requests.order(ids, user=f"buyer-{n}", idempotency_key=f"guessed-{random.random()}")
        yield requests.order(ids, idempotency_key="k" * 4000)


def _deep_offsets(path: str) -> Callable[[Targets], Iterator[bytes]]:
    def make(_: Targets) -> Iterator[bytes]:
        for offset in (10**9, 10**6, 10**5, 10**12, -1):
            yield http1.request("GET", f"{path}&limit=100&offset={offset}")

    return make


def _large_orders(targets: Targets) -> Iterator[bytes]:
    """Orders of as many lines as there are products, one in four of which exceeds the stock."""
    ids = list(targets.product_ids[:1000])
    for n in range(8):
        yield requests.order(ids, 1_000_000 if n % 4 == 3 else 1)


def _oversized(path: str) -> Callable[[Targets], Iterator[bytes]]:
    def make(_: Targets) -> Iterator[bytes]:
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()
        yield head + b"content-length: 2000000\r\n\r\n" + b"[" * 2_000_000
        yield head + b"transfer-encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"[" * 65536 + b"\r\n") * 40
        yield head + b"content-length: 1000000\r\n\r\n" + b"[" * 1_000_000

    return make


def _padded_order(targets: Targets) -> Iterator[bytes]:
    """Valid orders of one line, in bodies as large as the limit allows."""
    yield requests.padded("/api/order", {"user": requests.USER, "items": [_line(targets)]})


def _padded_product(_: Targets) -> Iterator[bytes]:
    """Products that are refused, in bodies as large as the limit allows."""
    yield requests.padded("/api/product", {"name": "", "price": "1.00", "currency": "GBP"})


def _line(targets: Targets) -> dict[str, object]:
    return {"product_id": targets.product_ids[0], "quantity": 1}


def kinds(pause: float = 2.0) -> dict[str, Kind]:
    """Return all kinds by name. `pause`: seconds between two requests of one client that asks for much."""
    found = {
        "half a head": Kind(hold(b"GET / HTTP/1.1\r\n" + _HOST), 60),
        "slow heads": Kind(hold(b"GET / HTTP/1.1\r\n" + _HOST + b"a: ", b"x"), 60),
        "one byte of a body": Kind(hold(b"POST / HTTP/1.1\r\n" + _HOST + b"content-length: 100\r\n\r\nx"), 340),
        "slow bodies": Kind(hold(b"POST / HTTP/1.1\r\n" + _HOST + b"content-length: 100000\r\n\r\nx", b"x"), 60),
        "idle connections": Kind(hold(b""), 200),
        "huge headers": Kind(
            send(_always([b"GET / HTTP/1.1\r\n" + _HOST + b"a: " + b"x" * 100_000 + b"\r\n\r\n"]), pause), 1
        ),
        "many headers": Kind(send(_always([b"GET / HTTP/1.1\r\n" + _HOST + b"a: b\r\n" * 1000 + b"\r\n"]), pause), 1),
        "endless headers": Kind(endless_headers(), 1),
        "malformed requests": Kind(send(_always(requests.malformed()), pause), 2),
        "forged idempotency keys": Kind(send(_forged_keys, pause / 10), 2, ("orders",)),
        "deep offsets of orders": Kind(
            send(_deep_offsets(f"/api/order?user={requests.USER}"), pause / 4), 2, ("orders",)
        ),
        "deep offsets of products": Kind(send(_deep_offsets("/api/product?q=a"), pause / 4), 2, ("products",)),
        "padded orders": Kind(send(_padded_order, pause), 20, ("orders",)),
        "padded products": Kind(send(_padded_product, pause), 20, ("products",)),
        "orders of 1,000 lines": Kind(send(_large_orders, pause), 4, ("orders",)),
    }
    for server, path in _PATHS.items():
        found[f"oversized bodies, {server}"] = Kind(send(_oversized(path), pause), 1, (server,))
        if server != "graphql":
            found[f"large pages compressed, {server}"] = Kind(send(_compressed_page(server), pause), 8, (server,))
        found[f"large pages not read, {server}"] = Kind(never_read(_large_page(server)), 40, (server,))
    for name in requests.graphql_requests():
        found[f"GraphQL: {name}"] = Kind(send(_graphql(name), pause), 1, ("graphql",))
    return found


@dataclass
class Attack:
    """Hostile clients at work. `outcomes`: by kind."""

    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def check(self) -> None:
        """Raise the error of a client that has ended: they run until they are cancelled."""
        for task in self.tasks:
            if task.done():
                task.result()


@asynccontextmanager
async def attacking(targets: Targets, selected: Mapping[str, Kind], *, intensity: float = 1.0) -> AsyncIterator[Attack]:
    """Run hostile clients of these kinds within the block. `intensity`: a factor for their number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attack = Attack()
    for name, kind in selected.items():
        ports = [targets.ports[server] for server in kind.servers if server in targets.ports]
        if ports:
            outcomes = attack.outcomes[name] = Counter()
            for port in ports * max(1, round(kind.count * intensity)):
                attack.tasks.append(asyncio.create_task(kind.run(Client(port, targets, outcomes))))
    try:
        yield attack
        attack.check()
    finally:
        for task in attack.tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*attack.tasks, return_exceptions=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
