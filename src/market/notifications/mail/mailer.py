"""Sends the mail of a notification."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from market.notifications.config import Config
from market.notifications.domain import Mail, Notification
from market.notifications.mail.composer import MailComposer
from market.notifications.mail.smtp import SmtpClient


class MailServer(Protocol):
    """What a mailer needs from a mail server. In production: smtp.SmtpClient."""

    async def send(self, mail: Mail) -> None:
        """Send the mail, and wait until it is accepted. Raises MailRejected, MailDeferred or MailServerUnavailable."""

    @property
    def available(self) -> bool:
        """Whether mails can be sent, as far as is known."""

    async def wait_until_available(self) -> None:
        """Wait until mails can be sent."""

    async def close(self) -> None:
        """Close the connections."""


class Mailer:
    """Composes mails and sends them to `mail_server`."""

    def __init__(self, config: Config, mail_server: MailServer | None = None) -> None:
        """Create the mailer without connecting. `mail_server` defaults to the configured SMTP server."""
        self.mail_server = mail_server or SmtpClient(config.smtp, config.mail.address)
        self._composer = MailComposer(config.mail)

    async def send(self, notification: Notification, now: datetime) -> None:
        """Send the mail of a notification, dated `now`, and wait until it is accepted.

        Raises MailRejected, MailDeferred or MailServerUnavailable.
        """
        await self.mail_server.send(self._composer.compose(notification, now))

    async def close(self) -> None:
        """Close the connections to the mail server."""
        await self.mail_server.close()
