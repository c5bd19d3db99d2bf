"""The SMTP side: accepts every mail, or injects the faults that a test requests."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Literal, cast

import msgspec
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from market.kit.process import logs
from market_dev.mailcatcher.mailbox import Mailbox

log = logs.get_logger("smtp")

Stage = Literal["connect", "mail", "rcpt", "data", "accepted"]


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One injected fault.

    mode: `ok` (none), `hang` (for `seconds`), `drop` (the connection), or a reply such as `451` or `550 5.1.1 unknown`
    stage: the SMTP command; at `accepted` the mail is stored, and then the reply is lost, late or negative
    to: only for this recipient, or for all in a domain, such as @example.com; from stage `rcpt` on
    times: how often; 0: always
    """

    mode: str
    stage: Stage = "data"
    to: str | None = None
    times: int = 0
    seconds: float = 3600

    def concerns(self, recipients: list[str]) -> bool:
        """Return whether the fault is injected for a mail to the recipients."""
        if self.to is None:
            return True
        return any(r.endswith(self.to) if self.to.startswith("@") else r == self.to for r in recipients)


_REASONS = {"4": "4.3.0 temporary failure", "5": "5.1.1 permanent failure"}


class Handler:
    """The hooks of aiosmtpd; owns the active faults."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._faults: list[Fault] = []

    def inject(self, faults: list[Fault]) -> None:
        """Replace the active faults."""
        self._faults = [f for f in faults if f.mode != "ok"]

    async def _fault(self, stage: Stage, server: SMTP, recipients: list[str]) -> str | None:
        for fault in self._faults:
            if fault.stage != stage or not fault.concerns(recipients):
                continue
            if fault.times:
                self._faults.remove(fault)
                if fault.times > 1:
                    self._faults.append(msgspec.structs.replace(fault, times=fault.times - 1))
            if fault.mode == "hang":
                await asyncio.sleep(fault.seconds)
                return None
            if fault.mode == "drop":
                # A cast, because uvloop's transport is not a subclass of asyncio's.
                cast(asyncio.Transport, server.transport).abort()
                return "421 4.3.2 connection dropped"
            return fault.mode if " " in fault.mode else f"{fault.mode} {_REASONS.get(fault.mode[:1], '')}".strip()
        return None

    async def handle_HELO(self, server: SMTP, session: Any, _envelope: Any, hostname: str) -> str:
        if reply := await self._fault("connect", server, []):
            return reply
        session.host_name = hostname
        return f"250 {server.hostname}"

    async def handle_EHLO(
        self, server: SMTP, session: Any, _envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        if reply := await self._fault("connect", server, []):
            return [reply]
        session.host_name = hostname
        return [*responses[:-1], "250-PIPELINING", responses[-1]]

    async def handle_MAIL(self, server: SMTP, _session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if reply := await self._fault("mail", server, []):
            return reply
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(self, server: SMTP, _session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if reply := await self._fault("rcpt", server, [address]):
            return reply
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Any, envelope: Any) -> str:
        if reply := await self._fault("data", server, envelope.rcpt_tos):
            return reply
        try:
            mail_id = await self._mailbox.add(envelope.mail_from, envelope.rcpt_tos, envelope.content)
        except OSError as e:
            log.error("cannot store mail", reason=e.strerror)
            return "452 4.3.1 insufficient system storage"
        return await self._fault("accepted", server, envelope.rcpt_tos) or f"250 OK {mail_id}"


# A plain address in angle brackets, and the parameters after it.
_PLAIN_ADDRESS = re.compile(r"\s*<([^\s<>@\"\\]+@[^\s<>@\"\\]+)>\s*(.*)")
_END_OF_MAIL = b"\r\n.\r\n"


class Session(SMTP):
    """aiosmtpd's session with a third of its CPU per mail.

    A mail is received as a whole instead of line by line. Plain addresses are not parsed like those in headers.
    """

    # The largest mail, because the stream cannot look for its end in more than this. Commands have limits of their own.
    line_length_limit = 33_554_432

    async def smtp_DATA(self, arg: str) -> None:
        """Receive a mail."""
        if await self.check_helo_needed() or await self.check_auth_needed("DATA"):
            return
        assert self.envelope is not None
        if not self.envelope.rcpt_tos:
            await self.push("503 Error: need RCPT command")
            return
        if arg:
            await self.push("501 Syntax: DATA")
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        self.envelope.content = await self._read_mail()
        reply = await self._call_handler_hook("DATA")
        self.envelope = self._create_envelope()
        await self.push(reply)

    async def _read_mail(self) -> bytes:
        received = b"\r\n"
        while not received.endswith(_END_OF_MAIL):
            received += await self._reader.readuntil(b".\r\n")
        # Without the dot at the end, and without the first of two dots at the beginning of a line.
        return received[:-3].replace(b"\r\n.", b"\r\n")[2:]

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        plain = _PLAIN_ADDRESS.fullmatch(arg)
        return (plain[1], plain[2]) if plain else super()._getaddr(arg)


class Authenticator:
    """Accepts one user and password."""

    def __init__(self, login: str) -> None:
        self._user, _, self._password = login.partition(":")

    def __call__(self, _server: SMTP, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        good = (
            isinstance(data, LoginPassword)
            and data.login == self._user.encode()
            and data.password == self._password.encode()
        )
        return AuthResult(success=good, handled=False)
