"""A fatal error of a Kafka producer, by the function that librdkafka has for tests."""

from __future__ import annotations

import ctypes
from typing import Any

from confluent_kafka import KafkaError
from market_dev.stack.kafka.embedded import library

from market.kit.kafka import Producer


def cause_fatal_error(producer: Producer[Any]) -> None:
    """Make the producer unusable, as an error of its idempotence does (`rd_kafka_test_fatal_error` in rdkafka.h)."""
    # The C structure of a confluent_kafka client begins with the object's head, followed by its rd_kafka_t pointer.
    head_bytes = object.__basicsize__
    handle = ctypes.c_void_p.from_address(id(producer._librdkafka) + head_bytes)
    function = ctypes.CDLL(library()).rd_kafka_test_fatal_error
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p]
    assert function(handle, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, b"caused by a test") == 0
