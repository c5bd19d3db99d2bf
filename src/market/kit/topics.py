"""Creates the topics of a service. On an existing topic, it may add settings, but does not change any.

topics = TopicKeeper(config.kafka, "market.orders", [Topic("orders", partitions=12, replication_factor=3)])
producer = Producer(config.kafka, "market.orders", ..., on_failure=topics.check_soon)
periodic_tasks({"topics": topics.check})
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs do not say that they export these
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewTopic,
)

from market.kit.config import Kafka
from market.kit.kafka_settings import client_settings
from market.kit.process import logs

log = logs.get_logger("kafka")

_CHECK_SECONDS = 3600.0
_MIN_CHECK_SECONDS = 5.0
_POLL_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0
# While the same failure goes on, it is logged this often.
_LOG_AGAIN_SECONDS = 3600.0
# For these settings, a warning is logged if a topic has a lower value than the service needs.
_MINIMUM_SETTINGS = frozenset({"max.message.bytes"})


@dataclass(frozen=True)
class Topic:
    """The definition of a topic. `settings` are the broker's topic-level settings, such as retention.ms."""

    name: str
    partitions: int
    replication_factor: int
    settings: Mapping[str, str] = field(default_factory=dict)


class _NotEnsured(Exception):
    """A topic was not created, or its settings were not updated."""

    def __init__(self, event: str, topic: str, e: KafkaException) -> None:
        super().__init__(event, topic)
        self.kind = (event, topic, e.args[0].code())
        self._reason = e.args[0].str()

    def log(self) -> None:
        event, topic = self.args
        log.warning(event, topic=topic, reason=self._reason)


class TopicKeeper:
    """Creates topics that do not exist. Checks once an hour, and within seconds after a delivery has failed.

    A failure is logged once, and then once an hour while it goes on for the same reason.

    apply_settings: also add `Topic.settings` to existing topics, once (see `ensure_topics`).
    clock: returns the time in seconds, from any start.
    """

    def __init__(
        self,
        config: Kafka,
        client_id: str,
        topics: Sequence[Topic],
        *,
        apply_settings: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._client_id = client_id
        self._topics = topics
        self._apply_settings = apply_settings
        self._check_requested = True
        self._clock = clock
        self._last_check = -math.inf
        # What was logged last, and when; None after a success.
        self._logged: tuple[tuple[str, str, int], float] | None = None

    def check_soon(self) -> None:
        """Request a check within seconds, because a delivery has failed. Thread-safe."""
        self._check_requested = True

    async def check(self) -> float:
        """Create the topics that do not exist, if a check is due. Return the seconds until the next call."""
        elapsed = self._clock() - self._last_check
        if not self._topics or elapsed < (_MIN_CHECK_SECONDS if self._check_requested else _CHECK_SECONDS):
            return _POLL_SECONDS
        self._check_requested = False
        done = False
        try:
            await asyncio.to_thread(
                _ensure_topics, self._config, self._client_id, self._topics, _TIMEOUT_SECONDS, self._apply_settings
            )
            done = True
        except _NotEnsured as e:
            self._log(e)
        finally:
            # Do not reset `_check_requested` here, because another delivery may have failed during the check.
            if done:
                self._apply_settings = False
                self._logged = None
            else:
                self._check_requested = True
            self._last_check = self._clock()
        return _POLL_SECONDS

    def _log(self, failure: _NotEnsured) -> None:
        now = self._clock()
        if self._logged is None or self._logged[0] != failure.kind or now - self._logged[1] >= _LOG_AGAIN_SECONDS:
            failure.log()
            self._logged = failure.kind, now


async def ensure_topics(
    config: Kafka, client_id: str, topics: Sequence[Topic], timeout_seconds: float, *, apply_settings: bool = False
) -> bool:
    """Create the topics that do not exist. Return False, and log the reason, if that failed or took too long.

    Existing topics keep their partitions and replicas. Concurrent calls are safe.

    apply_settings: also add `Topic.settings` to existing topics. A setting that an operator or an earlier release has
        set on the topic stays as it is. Return False if this fails
    """
    try:
        if topics:
            await asyncio.to_thread(_ensure_topics, config, client_id, topics, timeout_seconds, apply_settings)
    except _NotEnsured as e:
        e.log()
        return False
    return True


def _ensure_topics(
    config: Kafka, client_id: str, topics: Sequence[Topic], timeout_seconds: float, apply_settings: bool
) -> None:
    """See `ensure_topics`. Raises _NotEnsured."""
    # Keep a reference, or the client is garbage-collected, and its requests are lost.
    admin = AdminClient(client_settings(config, client_id))
    new = [
        NewTopic(t.name, num_partitions=t.partitions, replication_factor=t.replication_factor, config=dict(t.settings))
        for t in topics
    ]
    created = admin.create_topics(new, operation_timeout=timeout_seconds, request_timeout=timeout_seconds)
    existing = []
    for topic in topics:
        try:
            created[topic.name].result()
            log.info("topic created", topic=topic.name)
        except KafkaException as e:
            if e.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise _NotEnsured("topic not created", topic.name, e) from None
            existing.append(topic)
    for topic in existing if apply_settings else ():
        try:
            _apply_settings(admin, topic, timeout_seconds)
        except KafkaException as e:
            raise _NotEnsured("topic settings not updated", topic.name, e) from None


def _apply_settings(admin: AdminClient, topic: Topic, timeout_seconds: float) -> None:
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic.name)
    [described] = admin.describe_configs([resource], request_timeout=timeout_seconds).values()
    current = described.result()
    missing = {}
    for name, value in topic.settings.items():
        entry = current.get(name)
        if entry is None or entry.source != ConfigSource.DYNAMIC_TOPIC_CONFIG.value:
            missing[name] = value
        elif name in _MINIMUM_SETTINGS and int(entry.value) < int(value):
            log.warning(
                "topic setting is below what the service needs",
                topic=topic.name,
                setting=name,
                value=entry.value,
                needed=value,
            )
    if not missing:
        return
    changes = [ConfigEntry(n, v, incremental_operation=AlterConfigOpType.SET) for n, v in missing.items()]
    change = ConfigResource(ConfigResource.Type.TOPIC, topic.name, incremental_configs=changes)
    [altered] = admin.incremental_alter_configs([change], request_timeout=timeout_seconds).values()
    altered.result()
    log.info("topic settings applied", topic=topic.name, settings=missing)
