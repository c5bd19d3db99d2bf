#!/usr/bin/env bash
# CloudEvents SDK for Python, version 2: events that are made from the same dict of attributes have the same id and time.
#
# Expected: `id` and `time` are generated for each event that is made without them, as its docstring says and as in version 1, and events
# are immutable, as the announcement of version 2 says. So a dict that has only what all events of a service have in common, the source
# and the type, can be used again and again.
# Seen: the constructor writes the id and the time into the dict that it was given, and the event keeps that dict instead of a copy. So
# the second event finds an id there. Source and id identify an event: to a consumer that drops duplicates, as it has to where
# delivery is at least once, the second order is a repetition of the first one and is lost. Adding a subject to the dict for
# the next event changes the events before it as well. There is no error.
#
# Versions: cloudevents 2.2.0, Python 3.11. Date: 2026-11-29.
# Output seen:
#     version 2: 3 events, 1 different ids, 1 different times; the dict now has id, source, specversion, time, type
#     version 1: 3 events, 3 different ids, 3 different times; the dict now has source, type
#     subject of the first event after the dict was used for another one: order 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check cloudevents==2.2.0; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1.http import CloudEvent as CloudEvent1

numbers = {}
for version, make in ((2, CloudEvent), (1, CloudEvent1)):
    common = {"source": "/shop", "type": "order.created"}
    events = [make(common, {"order": number}) for number in range(3)]
    attributes = [event.get_attributes() for event in events]
    ids, times = ({str(each[name]) for each in attributes} for name in ("id", "time"))
    numbers[version] = len(ids)
    print(
        f"version {version}: {len(events)} events, {len(ids)} different ids, {len(times)} different times; "
        f"the dict now has {', '.join(sorted(common))}"
    )
common = {"source": "/shop", "type": "order.created", "subject": "order 1"}
first = CloudEvent(common, {"order": 1})
common["subject"] = "order 2"
CloudEvent(common, {"order": 2})
print(f"subject of the first event after the dict was used for another one: {first.get_subject()}")
sys.exit(0 if numbers == {2: 1, 1: 3} and first.get_subject() == "order 2" else 1)
PYTHON
