#!/usr/bin/env bash
# confluent-kafka's AIOProducer: produce() ignores positional arguments after the key, and keywords that it does not know, without an error.
#
# Expected: produce() takes what Producer.produce() takes: its docstring says that `*args` and `**kwargs` are further parameters such as
# partition; and a keyword that does not exist raises TypeError, as it does in Producer.
# Seen: a partition that is given by position, the fourth parameter of Producer.produce(), is dropped: the message goes to the partition
# of its key, and a consumer that relies on the partition for the order of messages, or reads only that one, misses it. `on_delivery` is
# dropped as well: the callback is never called, neither for messages that were delivered nor for those that failed, so that code moved
# from Producer no longer learns of lost messages. `partiton=3`, misspelt, is no error.
#
# Versions: confluent-kafka 2.16.1 (librdkafka 2.16.0), Python 3.11, broker: the one built into librdkafka. Date: 2026-11-29.
# Output seen:
#     Producer: ("orders", b"1", b"bob", 3) goes to partition 3; on_delivery called 1 times; misspelt keyword: TypeError
#     AIOProducer: ("orders", b"1", b"bob", 3) goes to partition 0; on_delivery called 0 times; misspelt keyword: accepted
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check confluent-kafka==2.16.1; } || exit 2
cat > "$folder/arguments.py" <<'PYTHON'
import asyncio
import sys

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.aio import AIOProducer

admin = AdminClient({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored", "log_level": 0})
broker = next(iter(admin.list_topics("orders", timeout=10).brokers.values()))
address = {"bootstrap.servers": f"{broker.host}:{broker.port}", "log_level": 0}


def sizes():
    """Return how many messages each of the four partitions has."""
    consumer = Consumer({**address, "group.id": "reader"})
    numbers = [consumer.get_watermark_offsets(TopicPartition("orders", p), timeout=10)[1] for p in range(4)]
    consumer.close()
    return numbers


def report(name, before, called, misspelt):
    partition = next(p for p, (old, new) in enumerate(zip(before, sizes())) if new > old)
    print(
        f'{name}: ("orders", b"1", b"bob", 3) goes to partition {partition}; on_delivery called {len(called)} times; '
        f"misspelt keyword: {misspelt}"
    )
    return partition, len(called), misspelt


def synchronous():
    before, called, misspelt = sizes(), [], "accepted"
    producer = Producer(address)
    producer.produce("orders", b"1", b"bob", 3, on_delivery=lambda *a: called.append(a))
    producer.flush(20)
    try:
        producer.produce("orders", b"1", b"bob", partiton=3)
    except TypeError as e:
        misspelt = type(e).__name__
    return report("Producer", before, called, misspelt)


async def asynchronous():
    before, called, misspelt = sizes(), [], "accepted"
    producer = AIOProducer(dict(address))
    await producer.produce("orders", b"1", b"bob", 3, on_delivery=lambda *a: called.append(a))
    await producer.flush(20)
    try:
        await producer.produce("orders", b"1", b"bob", partiton=3)
    except TypeError as e:
        misspelt = type(e).__name__
    result = report("AIOProducer", before, called, misspelt)
    await producer.close()
    return result


expected, seen = synchronous(), asyncio.run(asynchronous())
sys.exit(0 if expected == (3, 1, "TypeError") and seen[0] != 3 and seen[1:] == (0, "accepted") else 1)
PYTHON
"$folder/venv/bin/python" "$folder/arguments.py"
