"""The consumer of order events and deferred mails: a member of two consumer groups."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Protocol

import msgspec

from market.kit.faults import Faults
from market.kit.process import logs
from market.kit.process.health import Health
from market.kit.process.tasks import supervise
from market.notifications import metrics
from market.notifications.config import Config
from market.notifications.consumer.dispatcher import Availability, Dispatcher, DomainOf, Handler
from market.notifications.consumer.group_member import GroupMember, RateLimiter
from market.notifications.consumer.lag import LagObserver
from market.notifications.consumer.memory import MemoryBudget
from market.notifications.consumer.start import SentLogForConsumer, StartOffsets
from market.notifications.consumer.topic import TopicDescriber
from market.notifications.domain import Message, PendingMessage

log = logs.get_logger("consumer")

_TOPIC_CHECK_INTERVAL_SECONDS = 5.0
_TOPIC_WAIT_SECONDS = 0.5


class DeferredMails(Protocol):
    """What the consumer needs to read deferred mails. In production: deferral.queue.DeferredMailRestorer."""

    def restore(self, record: Message) -> PendingMessage:
        """Return the deferred mail in a record."""

    def observe(self, *, empty: bool) -> None:
        """Update the metrics.

        empty: whether the partitions that this process reads contain no deferred mail
        """


class OrdersConsumer:
    """Reads the topics of orders and of deferred mails. Must be constructed inside a running event loop.

    The topic of deferred mails is read by a group of its own. The process is ready even if that topic cannot be read,
    because other mails can still be sent. docs/decisions/0015-deferred-mails.md has the reasons.

    handler: makes one attempt at processing a message, in the event loop
    deferred_mails: restores deferred mails from their records
    domain_of: returns the domain of a message's recipient
    mail_server: partitions are paused while the mail server is unavailable
    sent_log: records when the group was first started
    """

    def __init__(
        self,
        config: Config,
        handler: Handler,
        deferred_mails: DeferredMails,
        domain_of: DomainOf,
        mail_server: Availability,
        sent_log: SentLogForConsumer,
        *,
        health: Health,
        faults: Faults | None,
    ) -> None:
        self._config = kafka = config.kafka
        self._health = health
        self._deferred_mails = deferred_mails
        memory = MemoryBudget(config.memory.max_messages, config.memory.max_bytes)
        self._dispatcher = Dispatcher(
            handler,
            domain_of,
            mail_server,
            memory,
            max_concurrency=config.smtp.max_connections,
            max_per_domain=config.smtp.domain_connections,
            max_waiting=config.retry.max_in_memory,
        )
        self._topic = TopicDescriber(kafka)
        self._starts = StartOffsets(kafka, self._topic, sent_log)
        group_member = partial(
            GroupMember,
            dispatcher=self._dispatcher,
            memory=memory,
            mail_server=mail_server,
            sent_log=sent_log,
            faults=faults,
        )
        self._orders_member = group_member(
            kafka,
            topic=self._topic,
            starts=self._starts,
            to_pending=_pending_event,
            rate_limiter=None,
            on_assignment=metrics.ASSIGNED.set,
            health=health,
        )
        self._orders_lag = LagObserver(
            self._topic.offsets,
            self._orders_member.assignment.positions,
            health,
            stalled_after_seconds=kafka.stalled_after_seconds,
        )
        deferred = msgspec.structs.replace(
            kafka, topic=kafka.deferred_topic_name, group=kafka.deferred_group, replay_missed=True
        )
        self._deferred_topic = TopicDescriber(deferred)
        self._deferred_member = group_member(
            deferred,
            topic=self._deferred_topic,
            starts=StartOffsets(deferred, self._deferred_topic, sent_log, read_from_beginning=True),
            to_pending=deferred_mails.restore,
            rate_limiter=RateLimiter(config.retry.max_deferred_per_second),
            on_assignment=metrics.DEFERRED_ASSIGNED.set,
            health=None,
        )
        self._deferred_lag = LagObserver(
            self._deferred_topic.offsets,
            self._deferred_member.assignment.positions,
            None,
            stalled_after_seconds=kafka.stalled_after_seconds,
            lag_metric=metrics.DEFERRED,
            stalled_metric=metrics.DEFERRED_STALLED,
        )
        # At least five times the timeout of the mail server, because an attempt waits for several replies.
        self._stalled_seconds = max(kafka.stalled_after_seconds, 5 * config.smtp.timeout_seconds)
        self._processing_stalled = False
        self._starting_deferred: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait for the broker and the topic, join the group, and wait for the first assignment, which may be empty.

        After that, lost connections and rebalances are handled in the background.
        """
        self._health.set_unready("kafka", "connecting")
        # Events of a topic that does not exist yet will be published after this start, so all of them are mailed.
        self._starts.topic_is_new = not await self._health.wait_for("kafka", self._orders_member.topic_exists)
        if self._starts.topic_is_new:
            await self._health.wait_for(f"topic {self._config.topic}", self._require_topic)
        await self._health.wait_for("sent log", self._starts.prepare)
        self._health.set_unready("partitions", "joining the group")
        self._orders_member.start()
        self._starting_deferred = asyncio.create_task(supervise("deferred-mails", self._start_deferred))
        await self._orders_member.joined.wait()

    async def stop(self, grace_seconds: float) -> None:
        """Stop polling, wait up to `grace_seconds` for messages in flight, commit, and leave the groups."""
        if self._starting_deferred is not None:
            self._starting_deferred.cancel()
            await asyncio.gather(self._starting_deferred, return_exceptions=True)
        await asyncio.gather(self._orders_member.stop(grace_seconds), self._deferred_member.stop(grace_seconds))
        await self._dispatcher.close()
        await asyncio.gather(asyncio.to_thread(self._topic.close), asyncio.to_thread(self._deferred_topic.close))

    async def check_topic(self) -> float:
        """Make a member rejoin its group if its topic was deleted and created again.

        Otherwise the member would continue at its old offset, and skip the beginning of the new topic. Return the
        seconds until the next check. Raises KafkaException.
        """
        for member, topic in ((self._orders_member, self._topic), (self._deferred_member, self._deferred_topic)):
            if member.joined.is_set() and member.assignment.trackers:
                topic_id = await asyncio.to_thread(topic.topic_id)
                known = member.assignment.topic_ids()
                if topic_id and known and topic_id not in known:
                    member.rejoin("the topic was deleted and created again")
        return _TOPIC_CHECK_INTERVAL_SECONDS

    async def observe_lag(self) -> float:
        """Update lag metrics and readiness. Return the seconds until the next call. Raises KafkaException."""
        if not self._orders_member.consuming:
            return 0.1
        self._observe_progress()
        return await self._orders_lag.observe()

    def _observe_progress(self) -> None:
        """Report the process as unready while messages could be processed, but no attempt finishes."""
        seconds = self._dispatcher.seconds_without_progress()
        stalled = seconds >= self._stalled_seconds
        metrics.PROCESSING_STALLED.set(int(stalled))
        if stalled:
            self._health.set_unready("mailing", f"no message has been processed for {seconds:.0f} s")
            if not self._processing_stalled:
                log.error("messages are not processed", seconds=round(seconds))
        else:
            self._health.set_ready("mailing")
        self._processing_stalled = stalled

    async def observe_deferred(self) -> float:
        """Update the metrics of deferred mails. Return the seconds until the next call. Raises KafkaException."""
        if not self._deferred_member.consuming:
            return 0.1
        pause = await self._deferred_lag.observe()
        assigned = set(self._deferred_member.assignment.trackers)
        self._deferred_mails.observe(empty=not any(self._deferred_lag.lag.get(p) for p in assigned))
        return pause

    async def _start_deferred(self) -> None:
        """Join the group of the deferred mails, once their topic exists. Raises KafkaException."""
        waiting = False
        while not await self._deferred_member.topic_exists():
            if not waiting:
                log.info("waiting for topic", topic=self._config.deferred_topic_name)
            waiting = True
            await asyncio.sleep(_TOPIC_WAIT_SECONDS)
        self._deferred_member.start()

    async def _require_topic(self) -> None:
        if not await self._orders_member.topic_exists():
            raise LookupError("it does not exist yet")


def _pending_event(message: Message) -> PendingMessage:
    return PendingMessage(message, message.offset)
