"""The wiring of notifications."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

from market.kit.auth.authenticator import authenticator
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import Process, Server
from market.kit.process.tasks import periodic_tasks
from market.kit.topics import Topic, TopicKeeper
from market.notifications import api
from market.notifications.config import Config, Kafka
from market.notifications.consumer.orders_consumer import OrdersConsumer
from market.notifications.dead_letters.replaying import ReplayDeps
from market.notifications.dead_letters.writer import DeadLetterWriter, dead_letter_topic_definition
from market.notifications.deferral.orders import OrdersWithDeferredMail
from market.notifications.deferral.queue import (
    DeferredMailRestorer,
    DeferredMailWriter,
    deferred_topic_definition,
)
from market.notifications.deferral.throttle import DomainThrottle
from market.notifications.mail.mailer import Mailer, MailServer
from market.notifications.sent_log.log import SentLog, sent_log_topic_definition
from market.notifications.service import DeferralDeps, Deps


@dataclass(frozen=True)
class Clients:
    """Clients that tests pass to `build` in place of the real ones."""

    mail_server: MailServer | None = None


@dataclass(frozen=True)
class ConsumerAndApi:
    """The two servers of the process: the consumer of events, and the REST API for operators."""

    consumer: OrdersConsumer
    api: HttpServer

    async def start(self) -> None:
        """Start the API, and then the consumer. So the API is served even while the consumer waits for Kafka."""
        await self.api.start()
        await self.consumer.start()

    async def drain(self, seconds: float) -> None:
        """Keep serving and consuming for `seconds`."""
        await self.api.drain(seconds)

    async def stop(self, grace_seconds: float) -> None:
        """Stop both at the same time, so that a slow request does not delay giving up the partitions."""
        await asyncio.gather(self.api.stop(grace_seconds), self.consumer.stop(grace_seconds))


@asynccontextmanager
async def build(config: Config, process: Process, clients: Clients | None = None) -> AsyncIterator[Server]:
    """Yield the consumer and the REST API, not yet started.

    This does not wait for Kafka: `start` does. It does not connect to the mail server: the first mail does.
    """
    mailer = Mailer(config, (clients or Clients()).mail_server)
    topics = TopicKeeper(config.kafka, "market.notifications", _own_topics(config.kafka), apply_settings=True)
    dead_letters = DeadLetterWriter(config.kafka, topics.check_soon)
    sent_log = SentLog(config.kafka, max_ids=config.kafka.sent_log_max_ids, on_failure=topics.check_soon)
    deferred_mail_writer = DeferredMailWriter(config.kafka, topics.check_soon)
    throttle = DomainThrottle(config.retry.domain_threshold, config.retry.domain_attempts_per_second)
    deps = Deps(
        mailer,
        dead_letters,
        config.retry,
        process.clock,
        process.tracer,
        process.faults,
        deferral_deps=DeferralDeps(deferred_mail_writer, throttle, OrdersWithDeferredMail()),
        sent_log=sent_log,
        sent_log_min_age=timedelta(seconds=config.kafka.sent_log_min_age_seconds),
    )
    deferred_mails = DeferredMailRestorer(config.retry.max_deferral_seconds)
    consumer = api.orders_consumer(config, deps, deferred_mails, sent_log, process.health)

    mailing_deps = replace(deps, deferral_deps=None, sent_log=None)
    replay_deps = ReplayDeps(config.kafka, config.dead_letters, dead_letters, sent_log, mailing_deps)

    tasks = {
        "topics": topics.check,
        "sent-log": sent_log.flush,
        "topic-id": consumer.check_topic,
        "lag": consumer.observe_lag,
        "deferred-mails": consumer.observe_deferred,
    }

    try:
        sent_log.connect()
        async with authenticator(config.auth) as authentication, periodic_tasks(tasks):
            app = api.rest_api(config, replay_deps, process.tracer, process.health, authenticator=authentication)
            server = ConsumerAndApi(consumer, HttpServer(app, config.http.host, config.http.port, limits=config.http))
            try:
                yield server
            finally:
                # If the start succeeded, the lifecycle has already stopped the servers. Otherwise a replay may be in
                # progress, because the API is served while the consumer waits for Kafka.
                await server.stop(config.shutdown.grace_seconds)
    finally:
        # Needed if the API could not be created, for example because its port is taken. Otherwise the consumer has
        # already been stopped, and this does nothing.
        await consumer.stop(0)
        await sent_log.close()
        await deferred_mail_writer.close()
        await dead_letters.close()
        await mailer.close()


def _own_topics(kafka: Kafka) -> list[Topic]:
    """Return the topics that this service creates. The embedded broker creates topics automatically."""
    if kafka.is_embedded_broker:
        return []
    return [dead_letter_topic_definition(kafka), sent_log_topic_definition(kafka), deferred_topic_definition(kafka)]
