"""The only wiring."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from market.kit.process.lifecycle import Process
from market.notifications.clients import DeadLetters
from market.notifications.config import Config
from market.notifications.consumer import Reader
from market.notifications.lanes import Lanes
from market.notifications.mails import Composer
from market.notifications.progress import Room
from market.notifications.service import Mailing
from market.notifications.smtp import MailServer


@asynccontextmanager
async def build(config: Config, process: Process, *, server: MailServer | None = None) -> AsyncIterator[Reader]:
    """The consumer, ready to start. Tests may pass another mail server."""
    server = server or MailServer(config.smtp, config.mail.address)
    letters = DeadLetters(config.kafka)
    mailing = Mailing(
        server, Composer(config.mail), letters.write, config.retry, process.clock, process.tracer, process.faults
    )
    room = Room(config.memory.messages, config.memory.bytes)
    lanes = Lanes(mailing.handle, server, room, config.smtp.connections)
    reader = Reader(config.kafka, lanes, server, room, process.health, process.faults)
    try:
        yield reader
    finally:
        # Where it ended without a stop: the thread must not outlive the loop that it hands messages to.
        await reader.stop(0)
        await lanes.close()
        await letters.close()
        await server.close()
