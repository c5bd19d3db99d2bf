"""The SMTP client: a pool of connections to the mail server, and whether the server is available."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from contextlib import suppress
from contextvars import Context

from aiosmtplib import SMTP, SMTPException, SMTPHeloError, SMTPResponseException, SMTPSenderRefused

from market.kit.process import logs
from market.kit.process.tasks import supervise
from market.kit.resilience import backoff
from market.kit.tls import ReloadingContext
from market.notifications import config, metrics
from market.notifications.domain import Mail, MailDeferred, MailRejected, MailServerUnavailable, SenderRejected
from market.notifications.mail import replies
from market.notifications.mail.connection import Connection

log = logs.get_logger("smtp")

# The reply of a server that is about to close the connection (RFC 5321).
_CLOSING = 421


class SmtpClient:
    """Sends mails over pooled connections. While the server is unavailable, a task tries to reconnect.

    sender: the address in MAIL FROM
    """

    def __init__(self, smtp: config.Smtp, sender: str) -> None:
        self._config = smtp
        self._sender = sender
        self._tls = ReloadingContext(self._build_tls_context, smtp.ca_file) if smtp.tls != "none" else None
        if self._tls is not None:
            # Read the file now, so that the service does not start if it cannot be read.
            self._tls.get()
        self._ehlo_hostname = smtp.ehlo_hostname or _host_name()
        # Idle connections, each with the time.monotonic() at which it became idle. They are used from the end, so that
        # the others expire when there is little to send.
        self._idle: list[tuple[Connection, float]] = []
        # Closes idle connections once they have been idle for too long. None while there is none.
        self._expiry: asyncio.TimerHandle | None = None
        self._available = asyncio.Event()
        self._available.set()
        self._reconnecting: asyncio.Task[None] | None = None
        self._failures = 0
        # Consecutive rejections of mails for policy reasons or because of a sending limit.
        self._policy_rejections = 0
        self._outage_reason = ""

    @property
    def available(self) -> bool:
        """Whether mails can be sent. False after an outage or a rejected sender, until reconnecting succeeds."""
        return self._available.is_set()

    async def wait_until_available(self) -> None:
        """Wait until the server is available. Return immediately if it is."""
        await self._available.wait()

    async def send(self, mail: Mail) -> None:
        """Send the mail, and wait until the server has accepted it.

        Raises MailRejected (5xx), MailDeferred (4xx, or the connection broke), or MailServerUnavailable.
        """
        try:
            connection = await self._begin(mail)
        except MailServerUnavailable as e:
            self._set_unavailable(e)
            raise
        try:
            await connection.complete(mail)
        except SMTPResponseException as e:
            await self._abort(connection, e.code)
            self._release(connection)
            # A server that closes the connection has neither recovered nor judged this mail.
            if e.code != _CLOSING:
                self._raise_if_sender_rejected(e)
            raise _error_of(e) from None
        except (SMTPException, OSError, TimeoutError) as e:
            # The server may have accepted the mail. It will be sent again, with the same Message-ID.
            connection.close()
            raise MailDeferred(f"connection broken: {_describe(e)}") from None
        except BaseException:
            connection.close()
            raise
        self._policy_rejections = 0
        self._confirm_recovery()
        self._release(connection)

    async def close(self) -> None:
        """Close the connections, with QUIT."""
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        if self._expiry is not None:
            self._expiry.cancel()
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            with suppress(SMTPException, OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await connection.quit()
            connection.close()

    async def _begin(self, mail: Mail) -> Connection:
        """Return a connection on which the server has accepted MAIL FROM. It is new if no idle one can be used.

        Raises MailRejected, MailDeferred or MailServerUnavailable.
        """
        while True:
            reused = self._acquire_idle()
            connection = reused or await self._connect()
            if mail.needs_smtputf8 and not connection.has_smtputf8:
                self._release(connection)
                raise MailRejected("the address needs SMTPUTF8, which the mail server does not offer")
            try:
                await connection.begin(self._sender, mail)
            except SMTPSenderRefused as e:
                if e.code == _CLOSING and reused is not None:
                    connection.close()
                    continue
                await self._abort(connection, e.code)
                self._release(connection)
                _raise_if_not_about_mail(e)
                self._confirm_recovery()
                raise _error_of(e) from None
            except (SMTPException, OSError, TimeoutError) as e:
                connection.close()
                if reused is None:
                    raise MailServerUnavailable(f"no reply to MAIL FROM: {_describe(e)}") from None
            except BaseException:
                connection.close()
                raise
            else:
                return connection

    def _build_tls_context(self) -> ssl.SSLContext:
        tls_context = ssl.create_default_context()
        if self._config.ca_file is not None:
            tls_context.load_verify_locations(self._config.ca_file)
        return tls_context

    async def _connect(self) -> Connection:
        """Return a new connection, encrypted and logged in as configured. Raises MailServerUnavailable."""
        c = self._config
        try:
            tls_context = self._tls.get() if self._tls is not None else None
        except OSError as e:
            raise MailServerUnavailable(f"cannot read ca_file: {_describe(e)}") from None
        smtp = SMTP(
            hostname=c.host,
            port=c.port,
            timeout=c.timeout_seconds,
            local_hostname=self._ehlo_hostname,
            use_tls=c.tls == "tls",
            start_tls=c.tls == "starttls",
            tls_context=tls_context,
            username=c.username,
            password=c.password,
        )
        try:
            await smtp.connect()
            if smtp.is_ehlo_or_helo_needed:
                await _greet(smtp)
            return Connection(smtp, c.timeout_seconds)
        except (SMTPException, OSError, TimeoutError, ValueError) as e:
            smtp.close()
            raise MailServerUnavailable(_describe(e)) from None
        except BaseException:
            smtp.close()
            raise

    def _acquire_idle(self) -> Connection | None:
        while self._idle:
            connection, since = self._idle.pop()
            if connection.is_connected and time.monotonic() - since < self._config.keepalive_seconds:
                return connection
            connection.close()
        return None

    def _release(self, connection: Connection) -> None:
        if not connection.is_connected:
            return
        self._idle.append((connection, time.monotonic()))
        if self._expiry is None:
            self._expire_after(self._config.keepalive_seconds)

    def _expire_after(self, seconds: float) -> None:
        self._expiry = asyncio.get_running_loop().call_later(seconds, self._close_idle)

    def _close_idle(self) -> None:
        """Close the connections that have been idle for too long."""
        now = time.monotonic()
        while self._idle and now - self._idle[0][1] >= self._config.keepalive_seconds - 0.01:
            self._idle.pop(0)[0].close()
        self._expiry = None
        if self._idle:
            self._expire_after(self._config.keepalive_seconds - (now - self._idle[0][1]))

    async def _abort(self, connection: Connection, code: int) -> None:
        """Abort the mail to which the server replied with `code`. Close the connection if it is no longer usable."""
        usable = False
        try:
            if code != _CLOSING:
                await connection.reset()
                usable = True
        except (SMTPException, OSError, TimeoutError):
            pass
        finally:
            # Also if this is cancelled.
            if not usable:
                connection.close()

    async def _check_sender(self, connection: Connection) -> None:
        """Check that the server accepts the sender, without sending a mail.

        If it does not, close the connection and raise SenderRejected or MailServerUnavailable.
        """
        try:
            await connection.check_sender(self._sender)
        except SMTPSenderRefused as e:
            await self._abort(connection, e.code)
            try:
                _raise_if_not_about_mail(e)
            except MailServerUnavailable:
                connection.close()
                raise
        except (SMTPException, OSError, TimeoutError) as e:
            connection.close()
            raise MailServerUnavailable(f"no reply to MAIL FROM: {_describe(e)}") from None
        except BaseException:
            connection.close()
            raise

    def _raise_if_sender_rejected(self, e: SMTPResponseException) -> None:
        """Raise SenderRejected after too many consecutive rejections because of a policy or a sending limit."""
        if not (replies.is_policy_or_limit(e) and e.code >= 500):
            self._policy_rejections = 0
            self._confirm_recovery()
            return
        self._policy_rejections += 1
        if self._policy_rejections >= self._config.max_policy_rejections:
            count = self._policy_rejections
            mails = "1 mail rejected" if count == 1 else f"{count} mails in a row rejected, the last"
            unavailable = SenderRejected(f"{mails} with: {_describe(e)}")
            self._set_unavailable(unavailable)
            raise unavailable from None

    def _set_unavailable(self, error: MailServerUnavailable) -> None:
        reason = str(error)
        sender_rejected = isinstance(error, SenderRejected)
        if reason != self._outage_reason:
            if sender_rejected:
                log.error("sender rejected by the mail server, consumption paused", reason=reason)
            else:
                log.error("mail server unavailable, consumption paused", reason=reason)
            self._outage_reason = reason
        metrics.PAUSED.labels("sender-rejected").set(int(sender_rejected))
        self._failures += 1
        if not self.available:
            return
        self._available.clear()
        metrics.PAUSED.labels("mail-server").set(1)
        # In an empty context, so that logs of reconnecting do not have the request id of the mail that failed.
        work = supervise("mail-server-probe", self._reconnect)
        self._reconnecting = asyncio.get_running_loop().create_task(work, context=Context())

    async def _reconnect(self) -> None:
        while True:
            pause = backoff(self._failures, base_seconds=0.2, max_seconds=self._config.max_reconnect_seconds)
            await asyncio.sleep(0.1 + pause)
            try:
                connection = await self._connect()
                await self._check_sender(connection)
            except MailServerUnavailable as e:
                self._set_unavailable(e)
                continue
            self._release(connection)
            self._available.set()
            metrics.PAUSED.labels("mail-server").set(0)
            metrics.PAUSED.labels("sender-rejected").set(0)
            return

    def _confirm_recovery(self) -> None:
        # Called only after a reply to a mail, because a server that accepts connections may still fail to accept mails.
        self._failures = 0
        if self._outage_reason:
            log.info("mail server recovered")
            self._outage_reason = ""


async def _greet(smtp: SMTP) -> None:
    """Greet with EHLO, and with HELO if the server does not know EHLO (RFC 5321, 3.2)."""
    try:
        await smtp.ehlo()
    except SMTPHeloError as e:
        if not (500 <= e.code <= 599 and smtp.is_connected):
            raise
        await smtp.helo()


def _raise_if_not_about_mail(e: SMTPSenderRefused) -> None:
    """Raise SenderRejected or MailServerUnavailable if the reply to MAIL FROM is not about this mail."""
    if replies.is_about_sender(e):
        raise SenderRejected(f"MAIL FROM: {_describe(e)}") from None
    if e.code == _CLOSING:
        raise MailServerUnavailable(f"MAIL FROM: {_describe(e)}") from None


def _host_name() -> str:
    return "".join(c for c in socket.gethostname() if c.isalnum() or c in ".-") or "localhost"


def _error_of(e: SMTPResponseException) -> MailRejected | MailDeferred:
    return MailRejected(_describe(e)) if 500 <= e.code <= 599 else MailDeferred(_describe(e))


def _describe(e: BaseException) -> str:
    """Return one printable line of at most 300 characters."""
    if isinstance(e, SMTPResponseException):
        text = f"{e.code} {e.message}"
    elif isinstance(e, TimeoutError):
        text = str(e) or "timed out"
    else:
        text = str(e) or type(e).__name__
    return "".join(c if c.isprintable() else " " for c in text)[:300]
