"""The broker built into librdkafka, as a process with a port of its own: for machines without Java.

    python -m market_dev.stack.kafka.embedded --port 9092 [--advertised 19092]

In memory: what it holds is gone when it stops. librdkafka listens on a port of its choice and tells
clients that one; a small relay in front listens on ours and puts it into the two answers that name
an address.
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

# As many as the design gives the embedded broker.
PARTITIONS = 4
TOPICS = ("orders", "orders.dead-letter")
_PRODUCER = 0
_METADATA, _FIND_COORDINATOR = 3, 10
_HOST = b"127.0.0.1"


class Broker:
    """librdkafka's broker, alive as long as this object."""

    def __init__(self) -> None:
        lib = ctypes.CDLL(_library())
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
            # Otherwise a new consumer group waits three seconds for members that do not come.
            lib.rd_kafka_mock_group_initial_rebalance_delay_ms.argtypes = [ctypes.c_void_p, ctypes.c_int32]
            lib.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.port = int(lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode().split(",")[0].rpartition(":")[2])


def _library() -> str:
    spec = find_spec("confluent_kafka")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent.parent / "confluent_kafka.libs"
    found = sorted(folder.glob("librdkafka*.so*"))
    if not found:
        raise OSError(f"no librdkafka in {folder}")
    # Its own dependencies lie beside it and are found by the path that the wheel has set.
    return str(found[0])


class Relay:
    """Listens on our port and passes frames to the broker and back."""

    def __init__(self, broker_port: int, advertised: int) -> None:
        self._port = broker_port
        self._inside = _HOST + struct.pack(">i", broker_port)
        self._outside = _HOST + struct.pack(">i", advertised)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        # Kafka answers the requests of a connection in order.
        asked: deque[int] = deque()

        async def requests() -> None:
            while True:
                frame = await _frame(reader)
                asked.append(int.from_bytes(frame[4:6], "big"))
                inner_writer.write(frame)
                await inner_writer.drain()

        async def answers() -> None:
            while True:
                frame = await _frame(inner_reader)
                if asked and asked.popleft() in (_METADATA, _FIND_COORDINATOR):
                    frame = frame.replace(self._inside, self._outside)
                writer.write(frame)
                await writer.drain()

        both = [asyncio.create_task(requests()), asyncio.create_task(answers())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            inner_writer.close()
            writer.close()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size, "big"))


async def _main(port: int, advertised: int) -> None:
    broker = Broker()
    relay = Relay(broker.port, advertised)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", port)
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    await stopping.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m market_dev.stack.kafka.embedded")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--advertised", type=int, help="the port that clients are told; default: --port")
    options = parser.parse_args()
    asyncio.run(_main(options.port, options.advertised or options.port))


if __name__ == "__main__":
    main()
