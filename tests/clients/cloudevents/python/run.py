"""Prints the event of one order as the CloudEvents SDK for Python reads it: run.py BROKERS TOPIC ORDER_ID"""

import json
import sys
import time

from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from confluent_kafka import Consumer

brokers, topic, order_id = sys.argv[1:]
consumer = Consumer({"bootstrap.servers": brokers, "group.id": f"python-{order_id}", "auto.offset.reset": "earliest"})
consumer.subscribe([topic])
end = time.monotonic() + 60
while time.monotonic() < end:
    message = consumer.poll(0.5)
    if message is None or message.error():
        continue
    event = from_kafka_event(KafkaMessage(dict(message.headers() or []), message.key(), message.value()))
    if event.get_subject() == order_id:
        shown = {
            "id": event.get_id(),
            "source": event.get_source(),
            "type": event.get_type(),
            "subject": event.get_subject(),
            "sequence": event.get_extension("sequence"),
            "time": event.get_time().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "data": event.get_data(),
        }
        print(json.dumps(shown))
        consumer.close()
        sys.exit()
sys.exit("no event of this order within 60 seconds")
