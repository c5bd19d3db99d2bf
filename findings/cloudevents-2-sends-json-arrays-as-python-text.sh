#!/usr/bin/env bash
# CloudEvents SDK for Python, version 2: to_binary() writes JSON data that is not an object as Python would print it.
#
# Expected: data with content type application/json may be any JSON value, an array or a Boolean too. The SDK reads such events, so what
# from_http_event() has read, to_binary_event() writes as the same JSON again; to_structured_event() does, and so did version 1.
# Seen: only a dict is written as JSON. An array of objects leaves with Python's quotes, True and None, which no JSON parser accepts, true
# becomes True, and a text loses its quotes; the header still says application/json. No error. The same with the binary mode of Kafka.
# A service that passes events on, or moves from version 1, sends what the next one cannot read; and the SDK itself, if it
# reads that, gives a text where there was a list, without an error either.
#
# Versions: cloudevents 2.2.0, Python 3.11. Date: 2026-11-29.
# Output seen:
#     {"sku": "A", "gift": true} -> HTTP {"sku": "A", "gift": true}, Kafka {"sku": "A", "gift": true}, structured {"sku": "A", "gift": true}
#     [{"sku": "A", "gift": true}] -> HTTP [{'sku': 'A', 'gift': True}], Kafka [{'sku': 'A', 'gift': True}], structured [{"sku": "A", "gift": true}]
#     true -> HTTP True, Kafka True, structured true
#     "A" -> HTTP A, Kafka A, structured "A"
#     read again by the SDK: "[{'sku': 'A', 'gift': True}]"
#     version 1 of its interface, cloudevents.v1: [{"sku": "A", "gift": true}]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check cloudevents==2.2.0; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys

from cloudevents.core.bindings import http, kafka
from cloudevents.v1.conversion import to_binary
from cloudevents.v1.http import from_http

HEADERS = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/shop", "ce-type": "order", "content-type": "application/json"}
ITEMS = '[{"sku": "A", "gift": true}]'
seen = {}
for body in ('{"sku": "A", "gift": true}', ITEMS, "true", '"A"'):
    event = http.from_http_event(http.HTTPMessage(HEADERS, body.encode()))
    sent = http.to_binary_event(event)
    assert sent.headers["content-type"] == "application/json"
    structured = json.dumps(json.loads(http.to_structured_event(event).body)["data"])
    seen[body] = (sent.body.decode(), kafka.to_binary_event(event).value.decode(), structured)
    print(f"{body} -> HTTP {seen[body][0]}, Kafka {seen[body][1]}, structured {seen[body][2]}")
    if body == ITEMS:
        again = http.from_http_event(sent).get_data()
print(f"read again by the SDK: {again!r}")
before = to_binary(from_http(HEADERS, ITEMS.encode()))[1].decode()
print(f"version 1 of its interface, cloudevents.v1: {before}")
good = all(structured == body for body, (_, _, structured) in seen.items()) and before == ITEMS
sys.exit(0 if good and seen[ITEMS][:2] == ("[{'sku': 'A', 'gift': True}]",) * 2 and seen["true"][0] == "True" else 1)
PYTHON
