#!/usr/bin/env bash
# librdkafka: the built-in broker for tests names a controller that does not exist, so requests about topics only time out.
#
# Expected: an admin client of the built-in broker (`test.mock.num.brokers`) describes a topic, since the broker's Metadata
# responses have topic ids; and a request that the broker does not know, such as CreateTopics, fails at once as unsupported.
# Seen: the broker numbers itself 1, and its Metadata responses name broker 0 as the controller. The client waits for that
# broker until its timeout, and reports "Failed while waiting for controller" in both cases. Once a proxy has
# replaced the number in the responses, describing works, and CreateTopics is refused in a moment.
#
# Versions: confluent-kafka 2.16.1 (librdkafka 2.16.0), Python 3.11. Date: 2026-11-28.
# Output seen:
#     brokers: [1], controller: 0
#     describe_topics: _TIMED_OUT Failed while waiting for controller: Local: Timed out
#     create_topics: _TIMED_OUT Failed while waiting for controller: Local: Timed out
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check confluent-kafka==2.16.1; } || exit 2
cat > "$folder/controller.py" <<'PYTHON'
import sys

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic

admin = AdminClient({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored", "log_level": 0})
admin.list_topics("orders", timeout=10)
cluster = admin.list_topics(timeout=10)
print(f"brokers: {list(cluster.brokers)}, controller: {cluster.controller_id}")


def outcome(futures):
    try:
        return f"done: {futures['orders'].result(10)}"
    except KafkaException as e:
        return f"{e.args[0].name()} {e.args[0].str()}"


described = outcome(admin.describe_topics(TopicCollection(["orders"]), request_timeout=3))
created = outcome(admin.create_topics([NewTopic("orders", 1, 1)], request_timeout=3))
print(f"describe_topics: {described}")
print(f"create_topics: {created}")
seen = cluster.controller_id not in cluster.brokers and all("controller" in text for text in (described, created))
sys.exit(0 if seen else 1)
PYTHON
"$folder/venv/bin/python" "$folder/controller.py" 2>/dev/null
