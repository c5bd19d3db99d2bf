#!/usr/bin/env bash
# confluent-kafka's AIOProducer: one message with a `timestamp` makes every flush() send the messages before it again.
#
# Expected: the docstring of AIOProducer.produce() names timestamp among the parameters of a message, and the method takes it. If it
# could not be sent, produce() would raise, or the message's future would fail and the message would be forgotten; the others
# would be sent once.
# Seen: produce() accepts the timestamp. The next flush sends the messages of the topics that come first in the buffer, then fails at
# this one with NotImplementedError, and puts all of them back into the buffer, those that were sent included. So each further flush(),
# with which one would repair it, sends them once more; with `enable.idempotence` too, since to librdkafka they are new messages. The
# message with the timestamp stays in the buffer although its future has failed. The timer of `buffer_timeout` does the same once and
# then ends, and close() raises. Only purge(), which drops what others have put into the buffer, ends it.
#
# Versions: confluent-kafka 2.16.1 (librdkafka 2.16.0), Python 3.11, broker: the one built into librdkafka. Date: 2026-11-29.
# Output seen:
#     payment 1, with a timestamp: NotImplementedError: Message timestamps are not currently supported in batch mode
#     order 1: delivered at offset 0
#     flush() was called 3 times and raised 3 times
#     in the topic of orders: 3 messages (order 1, order 1, order 1)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check confluent-kafka==2.16.1; } || exit 2
cat > "$folder/again.py" <<'PYTHON'
import asyncio
import sys
import time

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.aio import AIOProducer

FLUSHES = 3
admin = AdminClient({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored", "log_level": 0})
for topic in ("orders", "payments"):
    admin.list_topics(topic, timeout=10)
broker = next(iter(admin.list_topics(timeout=10).brokers.values()))
address = {"bootstrap.servers": f"{broker.host}:{broker.port}", "log_level": 0}


def read(at_least, seconds):
    """Return the values in the topic of orders, as soon as there are so many or the time is over."""
    consumer = Consumer({**address, "group.id": "reader"})
    consumer.assign([TopicPartition("orders", partition, 0) for partition in range(4)])
    values = []
    end = time.monotonic() + seconds
    while len(values) < at_least and time.monotonic() < end:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            values.append(message.value().decode())
    consumer.close()
    return values


async def main():
    # Without the timer, so that only flush() sends.
    producer = AIOProducer({**address, "enable.idempotence": True}, buffer_timeout=0)
    order = await producer.produce("orders", b"order 1", partition=0)
    payment = await producer.produce("payments", b"payment 1", timestamp=1_795_910_400_000)
    raised = 0
    for _ in range(FLUSHES):
        try:
            await producer.flush(10)
        except NotImplementedError:
            raised += 1
    end = time.monotonic() + 20
    while not order.done() and time.monotonic() < end:
        await producer.poll(0.1)
    print(f"payment 1, with a timestamp: {type(payment.exception()).__name__}: {payment.exception()}" if payment.done() else "pending")
    print(f"order 1: delivered at offset {order.result().offset()}")
    print(f"flush() was called {FLUSHES} times and raised {raised} times")
    values = await asyncio.to_thread(read, FLUSHES, 15)
    print(f"in the topic of orders: {len(values)} messages ({', '.join(values)})")
    return values


sys.exit(0 if asyncio.run(main()) == ["order 1"] * FLUSHES else 1)
PYTHON
"$folder/venv/bin/python" "$folder/again.py" 2>/dev/null
