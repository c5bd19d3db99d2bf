"""A connection to a mail server. It sends a mail in two round trips if the server offers PIPELINING (RFC 2920).

aiosmtplib opens the connection, encrypts it and logs in. It would also send mails, but with one round trip for each of
MAIL FROM, RCPT TO, DATA and the content, and three times the CPU.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import cast

from aiosmtplib import (
    SMTP,
    SMTPDataError,
    SMTPException,
    SMTPReadTimeoutError,
    SMTPRecipientRefused,
    SMTPResponse,
    SMTPResponseException,
    SMTPSenderRefused,
    SMTPServerDisconnected,
)

from market.notifications.domain import Mail

_COMPLETED, _WILL_FORWARD, _START_INPUT = 250, 251, 354
_MAX_REPLY_BYTES = 32_768
_LATE = "Timed out waiting for server response"
_REPLY_CODE = re.compile(rb"[2-5][0-9]{2}")
# A line ending that is not CRLF could end the mail early for one server and not for another.
_LINE_END = re.compile(rb"\r\n|\r|\n")
# What would end an address within angle brackets, or the command.
_NOT_IN_ADDRESS = re.compile(r"""[\s<>"\x00-\x1f\x7f]""")


class Connection(asyncio.Protocol):
    """Replaces the protocol of a connected client of aiosmtplib, which must not be used afterwards.

    All coroutines may raise SMTPException, for example because the connection is lost or a reply is late. Then close
    the connection. After SMTPResponseException, an error reply, `reset` may be called instead.

    timeout_seconds: how long to wait for a reply
    """

    def __init__(self, smtp: SMTP, timeout_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_seconds = timeout_seconds
        self._pipelining = smtp.supports_extension("pipelining")
        self._has_size = smtp.supports_extension("size")
        self.has_smtputf8 = smtp.supports_extension("smtputf8")
        # How many replies the server owes.
        self._expected = 0
        self._replies: deque[SMTPResponse] = deque()
        # The lines of a reply that is not complete yet, and the line that is not complete yet.
        self._lines: list[bytes] = []
        self._line = b""
        # Waits for the next reply.
        self._waiter: asyncio.Future[None] | None = None
        self._lost = False
        if smtp.transport is None:
            # The server has closed the connection after its last reply to aiosmtplib.
            raise SMTPServerDisconnected("Connection lost")
        # A cast, because uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, smtp.transport)
        self._transport.set_protocol(self)

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open, as far as is known."""
        return not self._lost and not self._transport.is_closing()

    async def begin(self, sender: str, mail: Mail) -> None:
        """Send MAIL FROM, and wait until the server has accepted it. Raises SMTPSenderRefused.

        With PIPELINING, also send the commands whose replies `complete` reads.
        """
        options = f" SIZE={len(mail.content)}" if self._has_size else ""
        if mail.needs_smtputf8:
            # The mail's header To is not ASCII.
            options += " SMTPUTF8 BODY=8BITMIME"
        command = _mail_from(sender, options)
        if self._pipelining:
            self._send(command + _rcpt_to(mail.recipient) + b"DATA\r\n", replies=3)
        else:
            self._send(command)
        await self._read_sender_reply(sender)

    async def complete(self, mail: Mail) -> None:
        """After `begin`, send the rest of the mail, and wait until the server has accepted it.

        Raises SMTPRecipientRefused or SMTPDataError.
        """
        if not self._pipelining:
            self._send(_rcpt_to(mail.recipient))
        reply = await self._read()
        if reply.code not in (_COMPLETED, _WILL_FORWARD):
            raise SMTPRecipientRefused(reply.code, reply.message, mail.recipient)
        if not self._pipelining:
            self._send(b"DATA\r\n")
        reply = await self._read(may_start_input=True)
        if reply.code != _START_INPUT:
            raise SMTPDataError(reply.code, reply.message)
        self._send(_as_data(mail.content))
        reply = await self._read()
        if reply.code != _COMPLETED:
            raise SMTPDataError(reply.code, reply.message)

    async def check_sender(self, sender: str) -> None:
        """Check that the server accepts the sender, without sending a mail. Raises SMTPSenderRefused."""
        self._send(_mail_from(sender, " SIZE=1" if self._has_size else ""))
        await self._read_sender_reply(sender)
        await self.reset()

    async def reset(self) -> None:
        """Abort the current mail. If this raises an exception, close the connection."""
        while self._expected:
            await self._read()
        self._send(b"RSET\r\n")
        reply = await self._read()
        if reply.code != _COMPLETED:
            raise SMTPResponseException(reply.code, reply.message)

    async def quit(self) -> None:
        """Say goodbye."""
        self._send(b"QUIT\r\n")
        await self._read()

    def close(self) -> None:
        """Close the connection. Does not wait, and does nothing if it is closed already."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take replies, or parts of them."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._lines.append(line)
            if line[3:4] != b"-":
                self._take_reply()
        if len(self._replies) == self._expected:
            # No reply is due. Usually, what else the server sends says why it is about to close the connection.
            self._line = b""
            self._lines.clear()
        elif len(self._line) + sum(map(len, self._lines)) > _MAX_REPLY_BYTES:
            self._fail(SMTPException("reply too long"))

    def connection_lost(self, _exc: Exception | None) -> None:
        """Fail the read in progress."""
        self._fail(SMTPServerDisconnected("Connection lost"))

    def _take_reply(self) -> None:
        lines, self._lines = self._lines, []
        # After a malformed reply, it is unknown to which command the next one belongs.
        if self._lost or len(self._replies) == self._expected:
            return
        code = lines[-1][:3]
        if not _REPLY_CODE.fullmatch(code):
            self._fail(SMTPException(f"malformed reply: {lines[-1][:100]!r}"))
        else:
            message = b"\n".join(line[4:].strip() for line in lines)
            self._replies.append(SMTPResponse(int(code), message.decode("utf-8", "surrogateescape")))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def _fail(self, error: SMTPException) -> None:
        self._lost = True
        self._transport.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def _send(self, commands: bytes, replies: int = 1) -> None:
        if not self.is_connected:
            raise SMTPServerDisconnected("Connection lost")
        self._expected += replies
        self._transport.write(commands)

    async def _read(self, *, may_start_input: bool = False) -> SMTPResponse:
        """Return the next reply. Raises SMTPException if it requests the content, unless `may_start_input`."""
        if not self._replies:
            await self._wait()
        self._expected -= 1
        reply = self._replies.popleft()
        if reply.code == _START_INPUT and not may_start_input:
            # For example, the server has refused the recipient and accepted DATA. It would take RSET for the content.
            raise SMTPException("content requested unexpectedly")
        return reply

    async def _wait(self) -> None:
        if not self.is_connected:
            raise SMTPServerDisconnected("Connection lost")
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(self._timeout_seconds, self._fail, SMTPReadTimeoutError(_LATE))
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    async def _read_sender_reply(self, sender: str) -> None:
        reply = await self._read()
        if reply.code != _COMPLETED:
            raise SMTPSenderRefused(reply.code, reply.message, sender)


def _mail_from(sender: str, options: str) -> bytes:
    return f"MAIL FROM:<{_checked(sender)}>{options}\r\n".encode("ascii")


def _rcpt_to(recipient: str) -> bytes:
    return f"RCPT TO:<{_checked(recipient)}>\r\n".encode()


def _checked(address: str) -> str:
    """Return the address. Raises ValueError if it could add something to the command."""
    if _NOT_IN_ADDRESS.search(address):
        raise ValueError(f"not a mail address: {address[:100]!r}")
    return address


def _as_data(content: bytes) -> bytes:
    """Return the mail as it is sent after DATA: with CRLF after each line, a line's first dot doubled, and the end."""
    crlf = content.count(b"\r\n")
    if content.count(b"\n") != crlf or content.count(b"\r") != crlf:
        content = _LINE_END.sub(b"\r\n", content)
    if not content.endswith(b"\r\n"):
        content += b"\r\n"
    return (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"
