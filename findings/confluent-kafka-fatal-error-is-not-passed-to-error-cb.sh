#!/usr/bin/env bash
# confluent-kafka (Python): a fatal error of a producer is not passed to `error_cb`; poll() raises it, once.
#
# Expected: librdkafka's documentation says that the error callback is triggered when a fatal error has been raised, and that the
# application should then replace the client. KafkaError has fatal() for that. A program with an `error_cb` that checks
# fatal() should learn of it there, and a thread that does nothing but poll() should not be ended by an exception.
# Seen: `error_cb` gets ordinary errors, such as a refused connection, but never the fatal one. Instead the next poll() raises
# a KafkaException with fatal() True; the polls after that raise nothing. A program that relies on `error_cb` learns of a
# fatal error only when produce() raises, and one whose polling thread does not catch the exception gets no delivery report
# any more.
#
# The error is caused by rd_kafka_test_fatal_error(), which librdkafka has for this purpose.
# Versions: confluent-kafka 2.16.1 (librdkafka 2.16.0), Python 3.11. Date: 2026-11-28.
# Output seen:
#     errors passed to error_cb: 4, fatal: 0
#     fatal errors raised by poll(): 1 (OUT_OF_ORDER_SEQUENCE_NUMBER)
#     raised by produce() afterwards: _FATAL
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check confluent-kafka==2.16.1; } || exit 2
cat > "$folder/fatal.py" <<'PYTHON'
import ctypes
import sys
import time
from pathlib import Path

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Producer

folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
library = ctypes.CDLL(str(next(folder.glob("librdkafka*.so*"))))
library.rd_kafka_test_fatal_error.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p]

passed, raised = [], []
# Nobody listens there, which is an ordinary error.
producer = Producer({"bootstrap.servers": "127.0.0.1:1", "enable.idempotence": True, "log_level": 0, "error_cb": passed.append})
# The client's C structure begins with Python's object head, followed by the pointer that librdkafka calls rd_kafka_t.
handle = ctypes.c_void_p.from_address(id(producer) + object.__basicsize__)
library.rd_kafka_test_fatal_error(handle, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, b"on purpose")
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        producer.poll(0.1)
    except KafkaException as e:
        raised.append(e.args[0])
try:
    producer.produce("orders", b"")
    afterwards = "nothing"
except KafkaException as e:
    afterwards = e.args[0].name()
fatal_passed = sum(e.fatal() for e in passed)
fatal_raised = [e.name() for e in raised if e.fatal()]
print(f"errors passed to error_cb: {len(passed)}, fatal: {fatal_passed}")
print(f"fatal errors raised by poll(): {len(fatal_raised)} ({', '.join(fatal_raised)})")
print(f"raised by produce() afterwards: {afterwards}")
sys.exit(0 if passed and fatal_passed == 0 and len(fatal_raised) == 1 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/fatal.py" 2>/dev/null
