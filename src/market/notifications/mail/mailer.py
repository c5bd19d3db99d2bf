"""Sends the mail of a notice."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from market.notifications.config import Config
from market.notifications.domain import Mail, Notice
from market.notifications.mail.composer import MailComposer
from market.notifications.mail.smtp import SmtpClient


class MailServer(Protocol):
    """What a mailer needs of a mail server; smtp.SmtpClient in production."""

    async def send(self, mail: Mail) -> None:
        """Return when the mail is accepted. Raises MailRejected, MailDeferred or MailServerUnavailable."""

    @property
    def available(self) -> bool:
        """Whether mails can be sent, as far as is known."""

    async def wait_until_available(self) -> None:
        """Return when mails can be sent."""

    def available_seconds(self) -> float:
        """Return for how long the server has been available since the start: a clock that stops during outages."""

    async def close(self) -> None:
        """Close the connections."""


class Mailer:
    """Composes mails and sends them to `mail_server`."""

    def __init__(self, config: Config, mail_server: MailServer | None = None) -> None:
        """Connect to nothing yet. Without `mail_server`, mails go to the one of the configuration."""
        self.mail_server = mail_server or SmtpClient(config.smtp, config.mail.address)
        self._composer = MailComposer(config.mail)

    async def send(self, notice: Notice, now: datetime) -> None:
        """Return when the mail is accepted. Raises MailRejected, MailDeferred or MailServerUnavailable."""
        await self.mail_server.send(self._composer.compose(notice, now))

    async def close(self) -> None:
        """Close the connections to the mail server."""
        await self.mail_server.close()
