#!/usr/bin/env python3
"""Write the contract of the topic `orders` from market.contracts.events: an AsyncAPI 3 document and a JSON Schema.

scripts/asyncapi.py FOLDER   # FOLDER/orders.json and FOLDER/order-event.schema.json
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec

from market.contracts import events
from market.kit import context

DESCRIPTION = (
    "CloudEvents 1.0 in structured mode. The key of a message is the order's id, so that the events of an order are in "
    "one partition. Delivery is at least once: a repeated event has the same `id`, and its `sequence` shows if it "
    "arrives after a later event of the same order."
)
TITLES = {events.CREATED: "An order was placed and confirmed", events.CANCELLED: "An order was cancelled"}
SEQUENCE = {
    "type": "string",
    "pattern": "^[1-9][0-9]*$",
    "description": "The position of the event among those of its order. Events that were published before 2026-11-28 "
    "have a number instead of text.",
}
HEADERS = {
    "type": "object",
    "required": [events.CONTENT_TYPE_HEADER],
    "properties": {
        events.CONTENT_TYPE_HEADER: {
            "type": "string",
            "const": events.CONTENT_TYPE,
            "description": "Events that were published before 2026-11-28 do not have it.",
        },
        events.REQUEST_ID_HEADER: {
            "type": "string",
            "description": "The id of the request that caused the event.",
        },
        **{
            name: {"type": "string", "description": "The trace of that request (W3C Trace Context and Baggage)."}
            for name in context.TRACE_HEADERS
        },
    },
}


def schemas(ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of an event, and those of its parts by name. Unknown members are allowed, as consumers must."""
    _, parts = msgspec.json.schema_components([events.OrderEvent], ref_template=ref_template)
    event = parts.pop("OrderEvent") | {"title": "Order event", "description": DESCRIPTION}
    # What is published is stricter than what is read.
    event["properties"]["sequence"] = SEQUENCE
    event["properties"]["type"] = {"type": "string", "enum": list(events.SEQUENCE)}
    for name in ("time", "id", "subject"):
        event["properties"][name] |= {"format": "date-time" if name == "time" else "uuid"}
    for name in ("specversion", "source", "datacontenttype"):
        default = event["properties"][name].pop("default")
        event["properties"][name] = {"type": "string", "const": default}
    optional = {field.name for field in msgspec.structs.fields(events.OrderEvent) if field.default is msgspec.UNSET}
    event["required"] = [name for name in event["properties"] if name not in optional]
    return event, parts


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the events."""
    event, parts = schemas("#/$defs/{name}")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | event | {"$defs": parts}


def document() -> dict[str, Any]:
    """Return the AsyncAPI 3 document."""
    event, parts = schemas("#/components/schemas/{name}")
    messages = {}
    for event_type in events.SEQUENCE:
        payload = deepcopy(event)
        payload["properties"]["type"] = {"type": "string", "const": event_type}
        messages[event_type] = {
            "name": event_type,
            "title": TITLES[event_type],
            "contentType": events.CONTENT_TYPE,
            "headers": HEADERS,
            "payload": payload,
            "bindings": {"kafka": {"key": {"type": "string", "format": "uuid"}, "bindingVersion": "0.5.0"}},
        }
    channel = {
        "address": events.TOPIC,
        "description": DESCRIPTION,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {
            "kafka": {
                "topic": events.TOPIC,
                "partitions": events.PARTITIONS,
                "topicConfiguration": {
                    "retention.ms": events.RETENTION_MS,
                    "max.message.bytes": events.MAX_MESSAGE_BYTES,
                },
                "bindingVersion": "0.5.0",
            }
        },
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Market: the events of orders", "version": "1.0.0", "description": DESCRIPTION},
        "defaultContentType": events.CONTENT_TYPE,
        "servers": {
            "kafka": {
                "host": "{host}:{port}",
                "protocol": "kafka",
                "description": "The brokers of `kafka.bootstrap_servers` in the configuration of orders.",
                "variables": {"host": {"default": "localhost"}, "port": {"default": "9092"}},
            }
        },
        "channels": {"orders": channel},
        "operations": {
            "publishOrderEvents": {
                "action": "send",
                "channel": {"$ref": "#/channels/orders"},
                "summary": "The service orders publishes the creation of every confirmed order, and its cancellation.",
                "messages": [{"$ref": f"#/channels/orders/messages/{name}"} for name in messages],
            }
        },
        "components": {"schemas": parts, "messages": messages},
    }


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("orders.json", document()), ("order-event.schema.json", json_schema())):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
