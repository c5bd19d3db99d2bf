#!/usr/bin/env bash
# OpenTelemetry for Python: the properties of a baggage member are taken for a part of its value, and leave as such for the next service.
#
# Expected: W3C Baggage has `key=value;property;property=value`, and a semicolon cannot occur in a value unless it is percent-encoded.
# So the value of `user=7;ttl=60` is 7. A library that has no use for properties passes them on or drops them; the value stays 7.
# Seen: the value is `7;ttl=60`, in get_baggage() and in what BaggageSpanProcessor and the like copy from there. And as inject()
# percent-encodes values, the header of the next call is `user=7%3Bttl%3D60`, which has no property any more: every service behind
# this one, in whatever language, now reads the value `7;ttl=60`. One service in Python changes what two others say to each other,
# without a warning. The opentelemetry packages of other languages (Ruby, JavaScript, Java) keep the properties apart.
#
# Versions: opentelemetry-api 1.45.2, Python 3.11. Date: 2026-11-29.
# Output seen:
#     header received: tier=gold,user=7;ttl=60;internal
#     values read: tier: gold, user: 7;ttl=60;internal
#     header sent: tier=gold,user=7%3Bttl%3D60%3Binternal
#     warnings: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check opentelemetry-api==1.45.2; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import logging
import sys

from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator

warnings = []
handler = logging.Handler()
handler.emit = warnings.append
logging.getLogger().addHandler(handler)

received, sent = {"baggage": "tier=gold,user=7;ttl=60;internal"}, {}
context = W3CBaggagePropagator().extract(received)
values = baggage.get_all(context)
W3CBaggagePropagator().inject(sent, context)
print("header received:", received["baggage"])
print("values read:", ", ".join(f"{key}: {value}" for key, value in values.items()))
print("header sent:", sent["baggage"])
print("warnings:", len(warnings))
sys.exit(0 if values["user"] != "7" and "user=7%3B" in sent["baggage"] else 1)
PYTHON
