"""The mail server: a few kept connections, and a gate that closes while it is away."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from contextlib import suppress

import aiosmtplib
from aiosmtplib import SMTP, SMTPException, SMTPResponseException, SMTPSenderRefused

from market.kit.process import logs
from market.kit.resilience import backoff
from market.notifications import config, metrics
from market.notifications.domain import Mail, MailServerAway, Refused, RefusedForNow

log = logs.get_logger("smtp")

# Answers to MAIL FROM that speak of our login or of TLS, not of this mail (RFC 4954, RFC 3207).
_LOGIN_CODES = {530, 534, 535, 538}
_CLOSING = 421


class MailServer:
    """Owns the connections. While the server is away the gate is closed, and one task tries to reach it, without end."""

    def __init__(self, smtp: config.Smtp, sender: str) -> None:
        self._config = smtp
        self._sender = sender
        self._tls = ssl.create_default_context() if smtp.tls != "none" else None
        if self._tls is not None and smtp.ca_file is not None:
            self._tls.load_verify_locations(smtp.ca_file)
        self._hello = smtp.hello or "".join(c for c in socket.gethostname() if c.isalnum() or c in ".-") or "localhost"
        # The one used last is taken first, so that a quiet shop keeps one.
        self._idle: list[tuple[SMTP, float]] = []
        self._open = asyncio.Event()
        self._open.set()
        self._probe: asyncio.Task[None] | None = None
        self._failures = 0
        self._reason = ""
        # Time that the gate was open, so that an outage does not use up a mail's time to be retried.
        self._open_before = 0.0
        self._opened_at = time.monotonic()

    @property
    def away(self) -> bool:
        return not self._open.is_set()

    async def present(self) -> None:
        """Returns at once, or when the server is reached again."""
        await self._open.wait()

    def present_seconds(self) -> float:
        """How long the server has been there since the start: a clock that stands still while it is away."""
        return self._open_before + (time.monotonic() - self._opened_at if self._open.is_set() else 0.0)

    async def send(self, mail: Mail) -> None:
        """Returns when the server has accepted the mail. Raises Refused, RefusedForNow, or MailServerAway (and closes the gate)."""
        try:
            connection = await self._begin(mail)
        except MailServerAway as e:
            self._close_gate(str(e))
            raise
        try:
            async with asyncio.timeout(3 * self._config.timeout_seconds):
                await connection.rcpt(mail.recipient)
                await connection.data(mail.content)
        except SMTPResponseException as e:
            await self._reset(connection, e.code)
            self._answered()
            raise _refusal(e) from None
        except (SMTPException, OSError, TimeoutError) as e:
            # Perhaps accepted, perhaps not: it is sent again, with the same Message-ID.
            connection.close()
            raise RefusedForNow(f"broke off: {_words(e)}") from None
        except BaseException:
            connection.close()
            raise
        self._answered()
        self._keep(connection)

    async def close(self) -> None:
        """Says goodbye on every kept connection."""
        if self._probe is not None:
            self._probe.cancel()
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            with suppress(SMTPException, OSError, TimeoutError):
                await connection.quit(timeout=1)
            connection.close()

    async def _begin(self, mail: Mail) -> SMTP:
        """A connection that has taken MAIL FROM. A kept one may have died in the meantime: then a fresh one."""
        while True:
            kept = self._take()
            connection = kept or await self._connect()
            try:
                options = [f"SIZE={len(mail.content)}"] if connection.supports_extension("size") else []
                await connection.mail(self._sender, options=options)
            except SMTPSenderRefused as e:
                if e.code == _CLOSING and kept is not None:
                    connection.close()
                    continue
                await self._reset(connection, e.code)
                if e.code in _LOGIN_CODES:
                    raise MailServerAway(f"MAIL FROM: {_words(e)}") from None
                self._answered()
                raise _refusal(e) from None
            except (SMTPException, OSError, TimeoutError) as e:
                connection.close()
                if kept is None:
                    raise MailServerAway(f"no answer to MAIL FROM: {_words(e)}") from None
            except BaseException:
                connection.close()
                raise
            else:
                return connection

    async def _connect(self) -> SMTP:
        """A fresh connection, greeted, encrypted and logged in as configured."""
        c = self._config
        smtp = SMTP(
            hostname=c.host,
            port=c.port,
            timeout=c.timeout_seconds,
            local_hostname=self._hello,
            use_tls=c.tls == "tls",
            start_tls=c.tls == "starttls",
            tls_context=self._tls,
            username=c.username,
            password=c.password,
        )
        try:
            await smtp.connect()
            if smtp.is_ehlo_or_helo_needed:
                await smtp.ehlo()
        except (SMTPException, OSError, TimeoutError, ValueError) as e:
            smtp.close()
            raise MailServerAway(_words(e)) from None
        except BaseException:
            smtp.close()
            raise
        return smtp

    def _take(self) -> SMTP | None:
        while self._idle:
            connection, since = self._idle.pop()
            if connection.is_connected and time.monotonic() - since < self._config.idle_seconds:
                return connection
            connection.close()
        return None

    def _keep(self, connection: SMTP) -> None:
        if not connection.is_connected:
            return
        self._idle.append((connection, time.monotonic()))
        asyncio.get_running_loop().call_later(self._config.idle_seconds, self._sweep)

    def _sweep(self) -> None:
        """Closes what nobody wanted; the oldest are in front."""
        while self._idle and time.monotonic() - self._idle[0][1] >= self._config.idle_seconds - 0.01:
            self._idle.pop(0)[0].close()

    async def _reset(self, connection: SMTP, code: int) -> None:
        """Ends the mail that was refused, and keeps the connection where it is still good."""
        if code != _CLOSING:
            with suppress(SMTPException, OSError, TimeoutError):
                await connection.rset()
                self._keep(connection)
                return
        connection.close()

    def _close_gate(self, reason: str) -> None:
        if reason != self._reason:
            log.error("the mail server does not take mails; reading is paused", reason=reason)
            self._reason = reason
        self._failures += 1
        if not self._open.is_set():
            return
        self._open_before = self.present_seconds()
        self._open.clear()
        metrics.PAUSED.labels("mail-server").set(1)
        self._probe = asyncio.get_running_loop().create_task(self._reach())

    async def _reach(self) -> None:
        while True:
            await asyncio.sleep(0.1 + backoff(self._failures, base=0.2, max_seconds=self._config.reconnect_seconds))
            try:
                connection = await self._connect()
            except MailServerAway as e:
                self._close_gate(str(e))
                continue
            self._keep(connection)
            self._opened_at = time.monotonic()
            self._open.set()
            metrics.PAUSED.labels("mail-server").set(0)
            return

    def _answered(self) -> None:
        # Only an answer to a mail ends the outage: a server that greets and then hangs up is not back.
        self._failures = 0
        if self._reason:
            log.info("the mail server takes mails again")
            self._reason = ""


def _refusal(e: SMTPResponseException) -> Refused | RefusedForNow:
    words = _words(e)
    return Refused(words) if 500 <= e.code <= 599 else RefusedForNow(words)


def _words(e: BaseException) -> str:
    """One printable line of at most 300 characters."""
    if isinstance(e, SMTPResponseException):
        text = f"{e.code} {e.message}"
    elif isinstance(e, aiosmtplib.SMTPTimeoutError | TimeoutError):
        text = str(e) or "no answer in time"
    else:
        text = str(e) or type(e).__name__
    return "".join(c if c.isprintable() else " " for c in text)[:300]
