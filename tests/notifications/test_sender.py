"""Replies of the mail server that are about our account, servers without EHLO, and the probe during outages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiosmtplib import SMTPResponseException

from market.kit.process.tasks import FAILURES
from market.notifications import metrics
from market.notifications.app import Clients
from market.notifications.config import Config
from market.notifications.domain import Mail, MailDeferred, MailRejected, MailServerUnavailable, SenderRejected
from market.notifications.mail import replies
from market.notifications.mail.connection import Connection
from market.notifications.mail.smtp import SmtpClient
from tests.notifications.conftest import Mailing, event, is_paused, message_ids
from tests.support.ports import free_port
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("code", "message", "about_sender"),
    [
        (550, "5.4.5 Daily user sending limit exceeded", True),
        (554, "5.7.1 message rejected: account suspended", True),
        (550, "sender address rejected", True),
        (553, "5.1.8 bad sender domain", True),
        (535, "5.7.8 authentication credentials invalid", True),
        (451, "4.7.1 too many messages, slow down", True),
        (552, "5.3.4 message size exceeds fixed limit", False),
        (552, "too big", False),
        (550, "5.1.1 no such user", False),
        (451, "4.3.0 try again", False),
        (451, "5.7.1 of another class than the code", False),
    ],
)
def test_a_reply_to_mail_from_is_about_the_sender_or_about_one_mail(
    code: int, message: str, about_sender: bool
) -> None:
    assert replies.is_about_sender(SMTPResponseException(code, message)) is about_sender


@pytest.mark.parametrize("reply", ["550 5.4.5 Daily user sending limit exceeded", "554 5.7.1 policy", "550 no"])
async def test_a_rejected_sender_pauses_consumption_and_no_mail_becomes_a_dead_letter(
    mailing: Mailing, reply: str
) -> None:
    mine = [event(email=mailing.mailbox) for _ in range(40)]
    await mailing.inject_faults({"mode": reply, "stage": "mail"})
    async with mailing.running():
        mailing.publish(*mine)
        await until(lambda: is_paused("sender-rejected"))
        await asyncio.sleep(1)
        # The probe finds that the sender is still rejected.
        assert is_paused("sender-rejected")
        assert is_paused()
        await mailing.inject_faults()
        await mailing.wait_committed(40)
        assert not is_paused("sender-rejected")
        assert not is_paused()
    assert sorted(m["message_id"] for m in await mailing.mails()) == message_ids(mine)
    assert mailing.dead_letters() == []


async def test_a_server_that_closes_every_new_connection_is_unavailable_and_no_domain_defers_mails(
    mailing: Mailing,
) -> None:
    mine = [event(email=mailing.mailbox) for _ in range(10)]
    retries = metrics.RETRIES.labels("deferred")._value.get()
    await mailing.inject_faults({"mode": "421 4.3.2 shutting down", "stage": "mail"})
    async with mailing.running():
        mailing.publish(*mine)
        await until(is_paused)
        await mailing.inject_faults()
        await mailing.wait_committed(10)
    assert sorted(m["message_id"] for m in await mailing.mails()) == message_ids(mine)
    assert metrics.RETRIES.labels("deferred")._value.get() == retries


@pytest.mark.parametrize(("reply", "stage"), [("550 5.7.1 policy", "rcpt"), ("550 5.4.5 limit", "data")])
async def test_policy_rejections_in_a_row_pause_consumption_after_the_first_few(
    mailing: Mailing, reply: str, stage: str
) -> None:
    await mailing.inject_faults({"mode": reply, "stage": stage})
    async with mailing.running(smtp={"max_policy_rejections": 3}):
        mailing.publish(*(event(email=mailing.mailbox) for _ in range(40)))
        await until(lambda: is_paused("sender-rejected"))
        await asyncio.sleep(1)
        await mailing.inject_faults()
        await mailing.wait_committed(40)
    assert len(await mailing.mails()) == 38
    assert [letter["headers"]["dead-letter-reason"] for letter in mailing.dead_letters()] == [f"rejected: {reply}"] * 2


@pytest.mark.parametrize("stage", ["rcpt", "data"])
async def test_a_server_that_closes_the_connection_during_a_mail_has_not_recovered(
    mailing: Mailing, stage: str
) -> None:
    kafka = msgspec.convert(mailing.config(smtp={"max_policy_rejections": 2}), Config, strict=False)
    client, mail = SmtpClient(kafka.smtp, kafka.mail.address), Mail(mailing.mailbox, b"Subject: x\r\n\r\nx\r\n")
    try:
        for reply, error in (
            ("550 5.7.1 policy", MailRejected),
            ("421 4.3.2 shutting down", MailDeferred),
            ("550 5.7.1 policy", SenderRejected),
        ):
            await mailing.inject_faults({"mode": reply, "stage": stage})
            with pytest.raises(error):
                await client.send(mail)
    finally:
        await client.close()


async def test_a_policy_rejection_of_single_recipients_makes_dead_letters_and_pauses_nothing(mailing: Mailing) -> None:
    blocked = f"blocked-{mailing.mailbox}"
    await mailing.inject_faults({"mode": "550 5.7.1 we do not want this", "stage": "rcpt", "to": blocked})
    async with mailing.running(smtp={"max_policy_rejections": 2, "max_connections": 1}):
        for _ in range(5):
            mailing.publish(event(email=blocked), event(email=mailing.mailbox), partition=0)
        await mailing.wait_committed(10)
    assert len(mailing.dead_letters()) == 5
    assert len(await mailing.mails()) == 5


@asynccontextmanager
async def _server_without_ehlo(port: int) -> AsyncIterator[list[str]]:
    """Run a mail server of RFC 821; the block gets the commands that it receives."""
    commands: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 old.market.test\r\n")
        while line := (await reader.readline()).decode("latin-1").strip():
            commands.append(line)
            verb = line.split()[0].upper()
            if verb == "DATA":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
            known = ("HELO", "MAIL", "RCPT", "DATA", "RSET", "QUIT")
            writer.write(b"250 OK\r\n" if verb in known else b"500 unrecognized command\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield commands
    finally:
        server.close()


async def test_a_mail_server_without_ehlo_gets_helo(mailing: Mailing) -> None:
    port = free_port()
    async with _server_without_ehlo(port) as commands:
        async with mailing.running(smtp={"port": port, "ehlo_hostname": "shop.market.test"}):
            mailing.publish(event(email=mailing.mailbox))
            await mailing.wait_committed(1)
        assert commands[:5] == [
            "EHLO shop.market.test",
            "HELO shop.market.test",
            "MAIL FROM:<shop@market.test>",
            f"RCPT TO:<{mailing.mailbox}>",
            "DATA",
        ]


class FlakyClient(SmtpClient):
    """Fails to connect: first as usual, then in ways that nobody expects."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.smtp, config.mail.address)
        self.failures = [MailServerUnavailable("refused"), RuntimeError("unexpected"), KeyError("unexpected")]

    async def _connect(self) -> Connection:
        if self.failures:
            raise self.failures.pop(0)
        return await super()._connect()


async def test_the_probe_of_the_mail_server_goes_on_after_an_unexpected_error(mailing: Mailing) -> None:
    client = FlakyClient(msgspec.convert(mailing.config(), Config, strict=False))
    before = FAILURES.labels("mail-server-probe")._value.get()
    async with mailing.running(clients=Clients(client)):
        mailing.publish(event(email=mailing.mailbox))
        await mailing.wait_committed(1)
        assert not is_paused()
    assert FAILURES.labels("mail-server-probe")._value.get() == before + 2
    assert len(await mailing.mails()) == 1


async def test_a_connection_whose_probe_is_refused_for_now_is_kept_once(mailing: Mailing) -> None:
    # Two mails that share a connection would mix their recipients.
    client = FlakyClient(msgspec.convert(mailing.config(), Config, strict=False))
    client.failures = [MailServerUnavailable("refused")]
    await mailing.inject_faults({"mode": "451 4.3.0 try again", "stage": "mail"})
    with pytest.raises(MailServerUnavailable):
        await client.send(Mail(mailing.mailbox, b"Subject: test\r\n\r\n"))
    await client.wait_until_available()
    try:
        assert len(client._idle) == 1
    finally:
        await mailing.inject_faults()
        await client.close()
