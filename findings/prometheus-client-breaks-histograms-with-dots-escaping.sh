#!/usr/bin/env bash
# prometheus-client: with `escaping=dots` in the Accept header, the samples of histograms and counters no longer belong to their families.
#
# Expected: Prometheus asks for this scheme with `metric_name_escaping_scheme: dots`. It makes `__` of an underscore in a name and
# `_dot_` of a dot. The family http.wait_seconds becomes http_dot_wait__seconds, and its buckets have, as both text formats
# require, the name of the family followed by `_bucket`.
# Seen: the library escapes the suffix as well: the family is declared as http_dot_wait__seconds, a histogram, and followed by samples named
# http_dot_wait__seconds__bucket, __count and __sum, which are of no type and belong to no family. The same happens to counters
# (`__total`) and infos (`__info`). A parser of OpenMetrics that checks this, such as the library's own, refuses the whole response as soon
# as one of them has an exemplar; without exemplars it reads a histogram without samples.
#
# Versions: prometheus-client 0.26.0, Python 3.11. Date: 2026-11-29.
# Output seen:
#     escaping=allow-utf-8, OpenMetrics: read: histogram http.wait_seconds with 4 samples
#     escaping=underscores, OpenMetrics: read: histogram http_wait_seconds with 4 samples
#     escaping=dots, OpenMetrics: ValueError: Invalid line only histogram/gaugehistogram buckets and counters can have exemplars
#     escaping=dots, text format 1.0.0: read: histogram http_dot_wait__seconds with 0 samples
#     # TYPE http_dot_wait__seconds histogram
#     http_dot_wait__seconds__bucket{le="0.1"} 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check prometheus-client==0.26.0; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

registry = CollectorRegistry()
histogram = Histogram("http.wait_seconds", "Waiting", registry=registry, buckets=(0.1,))
histogram.observe(0.05, exemplar={"trace_id": "1"})


def scrape(accept):
    encode, content_type = choose_encoder(accept)
    assert content_type.endswith(accept.split("; ")[-1]), content_type
    return encode(registry).decode()


def read(parse, text):
    try:
        family = next(family for family in list(parse(text)) if family.type == "histogram")
    except ValueError as e:
        return f"ValueError: {str(e).split(':')[0]}"
    samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    return f"read: histogram {family.name} with {len(samples)} samples"


seen = {}
for escaping in ("allow-utf-8", "underscores", "dots"):
    seen[escaping] = read(parse_openmetrics, scrape(f"application/openmetrics-text; version=1.0.0; escaping={escaping}"))
    print(f"escaping={escaping}, OpenMetrics: {seen[escaping]}")
text = scrape("text/plain; version=1.0.0; escaping=dots")
seen["text"] = read(parse_text, text)
print(f"escaping=dots, text format 1.0.0: {seen['text']}")
lines = [line for line in text.splitlines() if "histogram" in line or "bucket" in line]
print(*lines[:2], sep="\n")
good = all("samples" in seen[escaping] and "with 0" not in seen[escaping] for escaping in ("allow-utf-8", "underscores"))
sys.exit(0 if good and "ValueError" in seen["dots"] and "with 0 samples" in seen["text"] else 1)
PYTHON
