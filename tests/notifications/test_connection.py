"""The dialogue with a mail server: with and without PIPELINING, and after refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from aiosmtplib import SMTP, SMTPServerDisconnected

from market.notifications import config
from market.notifications.domain import Mail, MailDeferred, MailRejected
from market.notifications.mail.connection import Connection
from market.notifications.mail.smtp import SmtpClient
from tests.support.waiting import until

SENDER = "shop@market.test"
MAIL = Mail("ann@example.test", b"Subject: x\r\n\r\nx\r\n")


class Server:
    """A mail server that replies as the test says, after it has received all commands that are under way.

    replies: by command, in place of 250, or 354 to DATA; an empty reply is never sent
    """

    def __init__(self, extensions: str, replies: Mapping[str, bytes]) -> None:
        self.replies = {"DATA": b"354 go on\r\n", "QUIT": b"221 bye\r\n", **replies}
        self._extensions = extensions
        # The commands and contents, in groups: those of a group were received before the first of them was answered.
        self.received: list[list[str]] = []
        self.connections = 0
        self.closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        writer.write(b"220 mail.market.test\r\n")
        await reader.readline()
        writer.write(f"250-mail.market.test\r\n250{self._extensions}\r\n".encode())
        in_data = False
        while data := await reader.read(65_536):
            if in_data:
                self.received.append([data.decode()])
                in_data = False
                writer.write(self.replies.get("content", b"250 OK\r\n"))
                continue
            commands = data.decode().splitlines()
            self.received.append(commands)
            for command in commands:
                verb = command.split()[0]
                reply = self.replies.get(verb, b"250 OK\r\n")
                in_data = verb == "DATA" and reply.startswith(b"354")
                writer.write(reply)
        self.closed.set()
        writer.close()


@asynccontextmanager
async def running(
    extensions: str = "-PIPELINING\r\n250 SIZE", timeout_seconds: float = 60, **replies: bytes
) -> AsyncIterator[tuple[Server, SmtpClient]]:
    """Run a server; the block also gets a client for it."""
    server = Server(extensions, replies)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    client = SmtpClient(config.Smtp(host="127.0.0.1", port=port, tls="none", timeout_seconds=timeout_seconds), SENDER)
    try:
        yield server, client
    finally:
        await client.close()
        listener.close()


async def test_with_pipelining_a_mail_takes_two_round_trips() -> None:
    async with running() as (server, client):
        await client.send(MAIL)
        await client.send(MAIL)
    commands = [f"MAIL FROM:<{SENDER}> SIZE=17", "RCPT TO:<ann@example.test>", "DATA"]
    content = ["Subject: x\r\n\r\nx\r\n.\r\n"]
    assert server.received == [commands, content, commands, content, ["QUIT"]]
    assert server.connections == 1


async def test_without_pipelining_each_command_waits_for_the_reply_to_the_one_before() -> None:
    async with running(" HELP") as (server, client):
        await client.send(MAIL)
    assert server.received[:4] == [
        [f"MAIL FROM:<{SENDER}>"],
        ["RCPT TO:<ann@example.test>"],
        ["DATA"],
        ["Subject: x\r\n\r\nx\r\n.\r\n"],
    ]


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (b"a: b\r\n\r\n.\r\n..x\r\ny.\r\n", "a: b\r\n\r\n..\r\n...x\r\ny.\r\n.\r\n"),
        (b".a: b\r\n\r\nx", "..a: b\r\n\r\nx\r\n.\r\n"),
        (b"a: b\n\nx\n.\nMAIL FROM:<x@y.test>\r.\r", "a: b\r\n\r\nx\r\n..\r\nMAIL FROM:<x@y.test>\r\n..\r\n.\r\n"),
    ],
)
async def test_no_line_of_a_mail_ends_it(content: bytes, sent: str) -> None:
    async with running() as (server, client):
        await client.send(Mail("ann@example.test", content))
    assert server.received[1] == [sent]


@pytest.mark.parametrize(
    "address", ["a@b.test>\r\nRSET", "a b@c.test", "a@b.test> SIZE=1", '"a"@b.test', "a@b.test\x00"]
)
async def test_an_address_that_would_add_to_the_command_is_not_sent(address: str) -> None:
    async with running() as (server, client):
        with pytest.raises(ValueError, match="not a mail address"):
            await client.send(Mail(address, MAIL.content))
    assert server.received == []


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ({"MAIL": b"452 later\r\n", "RCPT": b"503 MAIL first\r\n", "DATA": b"503 RCPT first\r\n"}, MailDeferred),
        ({"RCPT": b"550 5.1.1 who\r\n", "DATA": b"554 no valid recipients\r\n"}, MailRejected),
        ({"DATA": b"451 4.3.0 later\r\n"}, MailDeferred),
        ({"content": b"554 5.6.0 no\r\n"}, MailRejected),
    ],
)
async def test_after_a_refusal_the_connection_is_reset_and_used_again(
    replies: dict[str, bytes], error: type[Exception]
) -> None:
    async with running(**replies) as (server, client):
        with pytest.raises(error):
            await client.send(MAIL)
        server.replies = {"DATA": b"354 go on\r\n"}
        await client.send(MAIL)
    assert ["RSET"] in server.received
    assert server.received[-2] == ["Subject: x\r\n\r\nx\r\n.\r\n"]
    assert server.connections == 1


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ({"RCPT": b"550 5.1.1 who\r\n"}, MailRejected),
        ({"MAIL": b"550 5.1.1 who\r\n"}, MailRejected),
        # A reply is missing, so that 354 looks like the reply to RCPT TO.
        ({"RCPT": b"", "DATA": b"354 go on\r\n250 OK\r\n"}, MailDeferred),
    ],
)
async def test_nothing_is_sent_as_the_content_of_a_mail_that_was_refused(
    replies: dict[str, bytes], error: type[Exception]
) -> None:
    async with running(**replies) as (server, client):
        with pytest.raises(error):
            await client.send(MAIL)
        await until(server.closed.is_set)
    # Neither RSET, which the server would take for the content, nor an empty mail.
    assert len(server.received) == 1


async def test_a_mail_whose_caller_is_cancelled_during_the_reset_leaves_no_connection() -> None:
    async with running(RCPT=b"550 5.1.1 who\r\n", DATA=b"554 no\r\n", RSET=b"") as (server, client):
        sending = asyncio.create_task(client.send(MAIL))
        await until(lambda: ["RSET"] in server.received)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await until(server.closed.is_set)
        assert client._idle == []


@pytest.mark.parametrize("reply", [b"hello\r\n", b"250-OK\r\n" * 8_000, b"", b"250"])
async def test_a_reply_that_is_malformed_endless_or_late_breaks_the_connection(reply: bytes) -> None:
    async with running(timeout_seconds=1, content=reply) as (server, client):
        with pytest.raises(MailDeferred, match="connection broken"):
            await client.send(MAIL)
        await until(server.closed.is_set)
        assert client._idle == []


async def test_what_follows_a_malformed_reply_is_not_the_reply_to_the_command_before() -> None:
    # Otherwise, the server's reply to DATA would count as its refusal of the recipient.
    async with running(MAIL=b"250 OK\r\nhello\r\n554 5.5.1 no\r\n", RCPT=b"", DATA=b"") as (server, client):
        with pytest.raises(MailDeferred, match="connection broken"):
            await client.send(MAIL)
        await until(server.closed.is_set)


async def test_a_connection_that_was_lost_just_after_the_greeting_is_a_lost_connection() -> None:
    with pytest.raises(SMTPServerDisconnected):
        Connection(SMTP(), 1)


async def test_what_a_server_says_without_being_asked_is_not_the_reply_to_the_next_command() -> None:
    async with running(content=b"250 OK\r\n451 4.3.0 and more\r\n451 4.3") as (server, client):
        await client.send(MAIL)
        await client.send(MAIL)
    assert server.connections == 1


async def test_replies_may_have_several_lines_and_arrive_in_pieces() -> None:
    async with running(MAIL=b"", RCPT=b"", DATA=b"") as (server, client):
        sending = asyncio.create_task(client.send(MAIL))
        await until(lambda: len(server.received) == 1)
        for piece in (b"451-4.3.0 a\r", b"\n451", b"-4.3.0 b\r\n451 4.3.0 c\r\n5", b"03 no", b"\r\n503 no\r\n"):
            server.writer.write(piece)
            await asyncio.sleep(0.01)
        with pytest.raises(MailDeferred, match=r"451 4\.3\.0 a 4\.3\.0 b 4\.3\.0 c"):
            await sending
