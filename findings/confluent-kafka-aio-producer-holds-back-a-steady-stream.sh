#!/usr/bin/env bash
# confluent-kafka's AIOProducer: while messages keep coming, none is sent before there are `batch_size` of them, despite `buffer_timeout`.
#
# Expected: as the changelog puts it, messages are buffered until the threshold or the timeout is reached: with `batch_size` 1000 and
# `buffer_timeout` 1.0 s (what one gets without setting them), a message is sent after little more than a second, as with linger.ms.
# Seen: each produce() restarts the timeout; it is not the age of the oldest message but how long nothing has been produced. A service
# that produces twice a second never pauses for a second, so its first message is sent when the thousandth has come, after 8 minutes; and
# a task that awaits a message's future waits as long. A program that ends without close() meanwhile loses up to 999 messages. With
# less or with far more to send it does not show, and in a test with a single message neither.
#
# Versions: confluent-kafka 2.16.1 (librdkafka 2.16.0), Python 3.11, broker: the one built into librdkafka. Date: 2026-11-29.
# Output seen (the number of messages varies):
#     a message every 0.05 s for 12 s: 238 produced, 0 of them delivered
#     after a pause: 238 delivered
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check confluent-kafka==2.16.1; } || exit 2
cat > "$folder/stream.py" <<'PYTHON'
import asyncio
import sys
import time

from confluent_kafka.admin import AdminClient
from confluent_kafka.aio import AIOProducer

SECONDS = 12
admin = AdminClient({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored", "log_level": 0})
broker = next(iter(admin.list_topics("orders", timeout=10).brokers.values()))


async def main():
    producer = AIOProducer(
        {"bootstrap.servers": f"{broker.host}:{broker.port}", "linger.ms": 0, "log_level": 0}, batch_size=1000, buffer_timeout=1.0
    )
    futures = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        futures.append(await producer.produce("orders", b"order"))
        await asyncio.sleep(0.05)
    delivered = sum(future.done() for future in futures)
    print(f"a message every 0.05 s for {SECONDS} s: {len(futures)} produced, {delivered} of them delivered")
    await asyncio.wait(futures, timeout=30)
    print(f"after a pause: {sum(future.done() and future.result().error() is None for future in futures)} delivered")
    await producer.close()
    return delivered < len(futures) / 2


sys.exit(0 if asyncio.run(main()) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/stream.py"
