#!/usr/bin/env bash
# librdkafka: an idempotent producer mostly sends its first message only half a second after it has found the broker.
#
# Expected: with a broker that is up, the first message of an idempotent producer takes one more request than that of
# another producer, since the producer needs an id: some milliseconds. So a command that sends one message, or a function
# that creates a producer per call, would lose nothing by `enable.idempotence`.
# Seen: the first message mostly takes 0.5 s, though producer and broker are idle meanwhile and `linger.ms` is 0. If the
# broker is not connected yet when the producer first wants an id, the next attempt is made by a timer, half a second later,
# and not when the connection is there. All further messages take a millisecond. With a broker of Apache Kafka 4.4 on the same
# machine, each of three new producers took 0.51 to 0.52 s; with librdkafka's broker for tests, which this script uses, most do.
# A producer that is created long before its first message does not show it.
#
# Versions: confluent-kafka 2.16.1 (librdkafka 2.16.0), Python 3.11. Date: 2026-11-29.
# Output seen (the numbers vary, because it is a race):
#     enable.idempotence=false: first message 0.000 to 0.003 s, 0 of 40 producers waited half a second
#     enable.idempotence=true: first message 0.051 to 1.017 s, 37 of 40 producers waited half a second
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check confluent-kafka==2.16.1; } || exit 2
cat > "$folder/first.py" <<'PYTHON'
import sys
import time

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

broker = AdminClient({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored", "log_level": 0})
address = next(iter(broker.list_topics("orders", timeout=10).brokers.values()))


def seconds_of_first_message(idempotent):
    producer = Producer(
        {
            "bootstrap.servers": f"{address.host}:{address.port}",
            "enable.idempotence": idempotent,
            "acks": "all",
            "linger.ms": 0,
            "log_level": 0,
        }
    )
    begin = time.monotonic()
    delivered = []
    producer.produce("orders", b"1", on_delivery=lambda error, _: delivered.append(error))
    while not delivered:
        producer.poll(0.01)
    assert delivered == [None], delivered
    return time.monotonic() - begin


waited = {}
for idempotent in (False, True):
    seconds = sorted(seconds_of_first_message(idempotent) for _ in range(40))
    waited[idempotent] = sum(s >= 0.45 for s in seconds)
    print(
        f"enable.idempotence={str(idempotent).lower()}: first message {seconds[0]:.3f} to {seconds[-1]:.3f} s, "
        f"{waited[idempotent]} of 40 producers waited half a second"
    )
sys.exit(0 if waited[False] < waited[True] else 1)
PYTHON
"$folder/venv/bin/python" "$folder/first.py" 2>/dev/null
