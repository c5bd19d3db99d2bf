"""The settings of librdkafka's clients, and a check of those that an operator has set in `kafka.options`.

The settings are documented at https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from market.kit.config import Kafka

# Room for the header of a batch, which a consumer fetches together with its messages.
_OVERHEAD_BYTES = 65_536
# Options of the Python client, which are objects and not text.
_PYTHON_SETTINGS = frozenset(
    {
        "default.topic.config",
        "error_cb",
        "logger",
        "oauth_cb",
        "on_commit",
        "on_delivery",
        "stats_cb",
        "throttle_cb",
    }
)
# Two names of the same option.
_BROKERS = ("bootstrap.servers", "metadata.broker.list")
# librdkafka compares these sizes in consumers only, and each consumer has its own.
_SIZES = ("fetch.max.bytes", "message.max.bytes", "receive.message.max.bytes")
# librdkafka permits this. Services have shorter times, with which it may still refuse an option such as linger.ms.
_MAX_DELIVERY_SECONDS = 1_000_000.0
# A shorter value is no secret, and may be a part of librdkafka's own words.
_MIN_SECRET_LENGTH = 4


def client_settings(config: Kafka, client_id: str) -> dict[str, Any]:
    """Return the librdkafka settings that producers, consumers and admin clients share, `config.options` included."""
    return {
        "bootstrap.servers": config.bootstrap_servers,
        "client.id": client_id,
        # librdkafka logs only critical errors, because it would repeat others at each connection attempt. A producer's
        # caller gets each failed delivery, and a consumer reports outages in its `error_cb`.
        "log_level": 2,
        "socket.connection.setup.timeout.ms": 3_000,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 250,
        "topic.metadata.refresh.interval.ms": 30_000,
        **config.options,
    }


def producer_settings(
    config: Kafka, client_id: str, *, max_message_bytes: int, delivery_seconds: float, linger_seconds: float
) -> dict[str, Any]:
    """Return the settings of an idempotent producer.

    `config.options` may override all settings but `acks`, `enable.idempotence` and `partitioner`.
    """
    delivery_ms = max(1, int(delivery_seconds * 1000))
    return {
        "message.max.bytes": max_message_bytes,
        "linger.ms": linger_seconds * 1000,
        "message.timeout.ms": delivery_ms,
        "request.timeout.ms": min(10_000, delivery_ms),
        "retry.backoff.ms": 50,
        "retry.backoff.max.ms": 1_000,
        # When this queue is full, `send` returns False.
        "queue.buffering.max.messages": 20_000,
        "queue.buffering.max.kbytes": 64 * 1024,
        **client_settings(config, client_id),
        "acks": "all",
        "enable.idempotence": True,
        # Kafka's clients have different defaults, but messages with the same key must get to the same partition.
        "partitioner": "murmur2_random",
    }


def consumer_settings(config: Kafka, client_id: str, group: str, *, max_message_bytes: int) -> dict[str, Any]:
    """Return the settings of a consumer that never commits automatically. Callers may add other settings.

    group: the consumer group. librdkafka requires one, even if the consumer never joins it.
    """
    return {
        "max.partition.fetch.bytes": max_message_bytes + _OVERHEAD_BYTES,
        "queued.max.messages.kbytes": 16 * 1024,
        **client_settings(config, client_id),
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
    }


def check_options(config: Kafka) -> None:
    """Raise ValueError if librdkafka refuses an option. The text shows no value, because it may be secret.

    Creates a client of each kind. They connect to no broker. With the method `oidc`, nothing is checked, because a
    client requests a token from the issuer as soon as it exists.
    """
    if not config.options:
        return
    if unusable := sorted(_PYTHON_SETTINGS & config.options.keys()):
        raise ValueError(f"kafka.options must be options of librdkafka, and {unusable[0]} is not one")
    if config.options.get("sasl.oauthbearer.method", "").lower() == "oidc":
        return
    producer = producer_settings(
        config, "check", max_message_bytes=1_000_000, delivery_seconds=_MAX_DELIVERY_SECONDS, linger_seconds=0
    )
    consumer = consumer_settings(config, "check", "check", max_message_bytes=1_000_000)
    admin = client_settings(config, "check")
    for settings in (producer, consumer, admin):
        for name in _BROKERS:
            settings.pop(name, None)
    for name in _SIZES:
        consumer.pop(name, None)
    try:
        Producer(producer)
        AdminClient(admin)
        Consumer(consumer).close()
    except (KafkaException, TypeError, ValueError) as e:
        raise ValueError(f"librdkafka refuses kafka.options: {reason_for_refusal(config, e)}") from None


def reason_for_refusal(config: Kafka, error: Exception) -> str:
    """Return why librdkafka refuses settings, and where they are listed. The text shows no values of `config.options`.

    error: what the constructor of a client has raised
    """
    reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
    names = _any_of(config.options)
    values = _any_of(_parts(config))
    # The names stay readable, even if a value is a part of one.
    reason = re.sub(rf"({names})|(?<!\w){values}(?!\w)", lambda found: found[1] or "***", reason)
    return f"{reason.strip()}; librdkafka's CONFIGURATION.md lists the options and their values"


def _any_of(texts: Iterable[str]) -> str:
    """Return a regular expression that matches each of the texts, the longest first, and nothing else."""
    return "(?:" + ("|".join(re.escape(text) for text in sorted(set(texts), key=len, reverse=True)) or r"(?!)") + ")"


def _parts(config: Kafka) -> list[str]:
    """Return the values that may be secret, and the items of those that are lists."""
    parts = [part for value in config.options.values() for part in (value, *re.split(r"[\s,;]+", value))]
    return [part for part in parts if len(part) >= _MIN_SECRET_LENGTH and part not in ("true", "false")]
