"""A notice becomes a mail: text and HTML from the templates, and headers that nothing can be smuggled into."""

from __future__ import annotations

from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from market.contracts import events, money
from market.notifications import config
from market.notifications.domain import Mail, Notice

# Headers are not folded: the folder breaks long addresses and Message-IDs, and none of ours reaches a line's limit.
_UNFOLDED = SMTP.clone(max_line_length=998)
# Quoted-printable can be read by eye but is slow to make; base64 is for orders of hundreds of lines.
_QUOTED_PRINTABLE_MOST = 24_000


class Composer:
    """Owns the templates. `compose(notice, now)` gives the same mail, Message-ID included, for the same event."""

    def __init__(self, mail: config.Mail) -> None:
        self._from = Address(display_name=mail.name, addr_spec=mail.address)
        self._domain = mail.address.partition("@")[2]
        self._templates = Environment(
            loader=PackageLoader("market.notifications", "templates"),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._templates.filters["money"] = money.write
        self._shop = mail.name or self._domain

    def message_id(self, event_id: str) -> str:
        return f"<{event_id}@{self._domain}>"

    def compose(self, notice: Notice, now: datetime) -> Mail:
        """The mail. The notice must have a recipient."""
        if notice.recipient is None:
            raise ValueError("a mail needs a recipient")
        message = EmailMessage(policy=SMTP)
        message["From"] = self._from
        message["To"] = Address(addr_spec=notice.recipient)
        what = "is confirmed" if notice.kind == "created" else "is cancelled"
        message["Subject"] = f"Your order {notice.short_id} {what}"
        message["Date"] = format_datetime(now)
        message["Message-ID"] = self.message_id(notice.event_id)
        if notice.kind == "cancelled":
            # The two mails of an order are shown as one conversation.
            first = self.message_id(str(events.event_id(notice.order_id, events.CREATED)))
            message["In-Reply-To"] = first
            message["References"] = first
        message["Auto-Submitted"] = "auto-generated"
        if notice.request_id:
            message["X-Request-Id"] = notice.request_id
        values = {"order": notice, "shop": self._shop, "title": f"Your order {what}"}
        text = self._templates.get_template(f"{notice.kind}.txt").render(values)
        html = self._templates.get_template(f"{notice.kind}.html").render(values)
        message.set_content(text, cte=_encoding(text))
        message.add_alternative(html, subtype="html", cte=_encoding(html))
        return Mail(notice.recipient, message.as_bytes(policy=_UNFOLDED))


def _encoding(text: str) -> str:
    return "quoted-printable" if len(text) <= _QUOTED_PRINTABLE_MOST else "base64"
