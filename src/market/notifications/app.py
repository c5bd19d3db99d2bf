"""The wiring of notifications."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from market.kit.process.lifecycle import Process, Server
from market.kit.process.tasks import periodic_tasks
from market.notifications import api
from market.notifications.config import Config
from market.notifications.dead_letters.writer import DeadLetterWriter, ensure_topic
from market.notifications.mail.mailer import Mailer, MailServer
from market.notifications.sent_log.log import SentLog
from market.notifications.service import Deps


@dataclass(frozen=True)
class Clients:
    """Clients that tests pass to `build` in place of the real ones."""

    mail_server: MailServer | None = None


@asynccontextmanager
async def build(config: Config, process: Process, clients: Clients | None = None) -> AsyncIterator[Server]:
    """Yield the consumer, not yet started. Connects to nothing: `start` waits for Kafka, `send` for the mail server."""
    mailer = Mailer(config, (clients or Clients()).mail_server)
    dead_letters = DeadLetterWriter(config.kafka)
    sent_log = SentLog(config.kafka, max_ids=config.kafka.sent_log_max_ids)
    deps = Deps(
        mailer,
        dead_letters,
        config.retry,
        process.clock,
        process.tracer,
        process.faults,
        sent_log=sent_log,
        sent_log_min_age=timedelta(seconds=config.kafka.sent_log_min_age_seconds),
    )
    consumer = api.orders_consumer(config, deps, sent_log, process.health)
    steps = {"sent-log": sent_log.flush, "topic": consumer.check_topic, "lag": consumer.observe_lag}

    async def ensure_dead_letter_topic() -> float:
        """Return the seconds until the next check."""
        return 3600.0 if await ensure_topic(config.kafka, timeout_seconds=5) else 5.0

    try:
        async with periodic_tasks({"dead-letter-topic": ensure_dead_letter_topic, **steps}):
            yield consumer
    finally:
        # The lifecycle has already called this, unless start-up failed. The consumer's thread must not outlive the
        # event loop that it submits to.
        await consumer.stop(0)
        await sent_log.close()
        await dead_letters.close()
        await mailer.close()
