"""The broker embedded in librdkafka, as a process with its own port: for machines without Java.

    python -m market_dev.stack.kafka.embedded --port 9092 [--advertised 19092]

It keeps everything in memory, and loses it when it stops. librdkafka listens on a random port, and advertises it to
clients. So a small proxy in front of it listens on the configured port, and rewrites the address in the two responses
that contain one, and the controller.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import signal
import struct
from collections import deque
from importlib.util import find_spec
from pathlib import Path

PARTITIONS = 4
TOPICS = ("orders", "orders.dead-letter")
_PRODUCER = 0
_METADATA, _FIND_COORDINATOR = 3, 10
# The versions that this librdkafka's clients request, and that its broker knows.
_FLEXIBLE_METADATA = range(9, 14)
_HOST = b"127.0.0.1"
_BROKER_ID = 1


class Broker:
    """librdkafka's broker. It runs as long as this object exists."""

    def __init__(self) -> None:
        lib = ctypes.CDLL(library())
        lib.rd_kafka_new.restype = ctypes.c_void_p
        lib.rd_kafka_new.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        lib.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
        lib.rd_kafka_mock_cluster_new.argtypes = [ctypes.c_void_p, ctypes.c_int]
        lib.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        lib.rd_kafka_mock_cluster_bootstraps.argtypes = [ctypes.c_void_p]
        lib.rd_kafka_mock_topic_create.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
        reason = ctypes.create_string_buffer(512)
        self._owner = lib.rd_kafka_new(_PRODUCER, None, reason, len(reason))
        if not self._owner:
            raise OSError(f"librdkafka: {reason.value.decode()}")
        self._cluster = lib.rd_kafka_mock_cluster_new(self._owner, 1)
        if not self._cluster:
            raise OSError("librdkafka could not start its broker")
        for topic in TOPICS:
            lib.rd_kafka_mock_topic_create(self._cluster, topic.encode(), PARTITIONS, 1)
        if hasattr(lib, "rd_kafka_mock_group_initial_rebalance_delay_ms"):
            # Otherwise a new consumer group waits three seconds for further members.
            lib.rd_kafka_mock_group_initial_rebalance_delay_ms.argtypes = [ctypes.c_void_p, ctypes.c_int32]
            lib.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.port = int(lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode().split(",")[0].rpartition(":")[2])


def library() -> str:
    """Return the path of the librdkafka that confluent_kafka uses."""
    spec = find_spec("confluent_kafka")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent.parent / "confluent_kafka.libs"
    found = sorted(folder.glob("librdkafka*.so*"))
    if not found:
        raise OSError(f"no librdkafka in {folder}")
    # Its dependencies are beside it, and are found by the rpath that the wheel has set.
    return str(found[0])


class Proxy:
    """Passes frames between clients and the broker, and rewrites the broker's address."""

    def __init__(self, broker_port: int, advertised: int) -> None:
        self._port = broker_port
        self._broker_address = _HOST + struct.pack(">i", broker_port)
        self._advertised_address = _HOST + struct.pack(">i", advertised)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        # Kafka sends the responses of a connection in the order of its requests.
        requests: deque[tuple[int, int]] = deque()

        async def forward_requests() -> None:
            while True:
                frame = await _frame(reader)
                requests.append((int.from_bytes(frame[4:6], "big"), int.from_bytes(frame[6:8], "big")))
                inner_writer.write(frame)
                await inner_writer.drain()

        async def forward_responses() -> None:
            while True:
                frame = await _frame(inner_reader)
                api_key, version = requests.popleft() if requests else (-1, 0)
                if api_key in (_METADATA, _FIND_COORDINATOR):
                    frame = frame.replace(self._broker_address, self._advertised_address)
                if api_key == _METADATA and version in _FLEXIBLE_METADATA:
                    frame = _with_controller(frame)
                writer.write(frame)
                await writer.drain()

        both = [asyncio.create_task(forward_requests()), asyncio.create_task(forward_responses())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            inner_writer.close()
            writer.close()


def _with_controller(frame: bytes) -> bytes:
    """Return a flexible Metadata response that names the only broker as the controller.

    librdkafka's broker names broker 0, which does not exist, and its admin clients wait for the controller before they
    send a request about a topic. Layout: https://kafka.apache.org/protocol.html#The_Messages_Metadata
    """
    # After the frame's length, the correlation id, the header's tags and throttle_time_ms.
    position = 4 + 4 + 1 + 4
    brokers, position = frame[position] - 1, position + 1
    for _ in range(brokers):
        # node_id, host, port, rack, tags. The lengths of compact strings are stored plus one, 0 is null.
        position += 4
        position += max(1, frame[position]) + 4
        position += max(1, frame[position]) + 1
    # cluster_id
    position += max(1, frame[position])
    return frame[:position] + struct.pack(">i", _BROKER_ID) + frame[position + 4 :]


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size, "big"))


async def _main(port: int, advertised: int) -> None:
    broker = Broker()
    proxy = Proxy(broker.port, advertised)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port)
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    await stopping.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m market_dev.stack.kafka.embedded")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--advertised", type=int, help="the port advertised to clients; default: --port")
    options = parser.parse_args()
    asyncio.run(_main(options.port, options.advertised or options.port))


if __name__ == "__main__":
    main()
