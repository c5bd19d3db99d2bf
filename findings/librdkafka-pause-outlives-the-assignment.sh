#!/usr/bin/env bash
# librdkafka: a partition that is paused while it is being revoked stays paused when the same consumer gets it back.
#
# Expected: pause() belongs to the assignment. A partition that is revoked (incremental_unassign) and later assigned again
# (incremental_assign) starts to deliver messages, as a newly assigned partition does. Pausing in the revoke
# callback looks harmless: the partition is leaving anyway.
# Seen: the pause outlives the revocation. After a second member of the group joined and left, the first member owns all four
# partitions again, reports them in its assignment, and delivers nothing from the two that had moved, without an error,
# until resume() is called. A consumer with lag metrics of its own shows no lag, since it has not read those messages.
#
# Versions: confluent-kafka 2.16.1 (librdkafka 2.16.1), Python 3.11, broker: the one built into librdkafka. Date: 2026-11-28.
# Output seen:
#     assigned at first: 4 of 4
#     kept beside a second member: 2 of 4
#     assigned again after it left: 4 of 4
#     read of one message in each partition: 2 of 4
#     read after an explicit resume: 4 of 4
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check confluent-kafka==2.16.1; } || exit 2
cat > "$folder/pause.py" <<'PYTHON'
import sys
import time

from confluent_kafka import Consumer, Producer, TopicPartition

PARTITIONS = 4  # what the built-in broker gives a topic
producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored", "log_level": 0})
broker = next(iter(producer.list_topics(timeout=10).brokers.values()))
producer.list_topics("orders", timeout=10)


def member(name):
    return Consumer({
        "bootstrap.servers": f"{broker.host}:{broker.port}", "group.id": "mails", "client.id": name, "log_level": 0,
        "partition.assignment.strategy": "cooperative-sticky", "auto.offset.reset": "earliest",
        "enable.auto.commit": False, "session.timeout.ms": 6000, "heartbeat.interval.ms": 200,
    })


owned = set()


def on_assign(consumer, partitions):
    owned.update(p.partition for p in partitions)
    consumer.incremental_assign(partitions)


def on_revoke(consumer, partitions):
    consumer.pause(partitions)
    owned.difference_update(p.partition for p in partitions)
    consumer.incremental_unassign(partitions)


first, second = member("first"), member("second")


def poll(done, seconds, *others):
    seen = set()
    end = time.monotonic() + seconds
    while time.monotonic() < end and not done(seen):
        for other in others:
            other.poll(0.05)
        message = first.poll(0.05)
        if message is not None and message.error() is None:
            seen.add(message.partition())
    return seen


first.subscribe(["orders"], on_assign=on_assign, on_revoke=on_revoke)
poll(lambda _: len(owned) == PARTITIONS, 60)
print(f"assigned at first: {len(owned)} of {PARTITIONS}")
second.subscribe(["orders"])
poll(lambda _: len(owned) == 2 and len(second.assignment()) == 2, 60, second)
kept = set(owned)
print(f"kept beside a second member: {len(kept)} of {PARTITIONS}")
second.close()
poll(lambda _: len(owned) == PARTITIONS, 60)
print(f"assigned again after it left: {len(owned)} of {PARTITIONS}")
if len(kept) != 2 or len(owned) != PARTITIONS:
    sys.exit(2)
for partition in range(PARTITIONS):
    producer.produce("orders", b"message", partition=partition)
producer.flush(10)
seen = poll(lambda s: len(s) == PARTITIONS, 8)
print(f"read of one message in each partition: {len(seen)} of {PARTITIONS}")
first.resume([TopicPartition("orders", partition) for partition in range(PARTITIONS)])
after = seen | poll(lambda s: len(seen | s) == PARTITIONS, 15)
print(f"read after an explicit resume: {len(after)} of {PARTITIONS}")
first.close()
sys.exit(0 if seen == kept and len(after) == PARTITIONS else 1)
PYTHON
"$folder/venv/bin/python" "$folder/pause.py"
