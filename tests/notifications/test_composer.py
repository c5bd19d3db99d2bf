"""Mails have exactly the headers that the composer writes, whatever an event contains."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from market.contracts import events
from market.kit.mail_address import parse_mail_address
from market.notifications import config
from market.notifications.domain import InvalidEvent, Message
from market.notifications.events.parsing import parse_notification
from market.notifications.mail.composer import MailComposer, _part
from tests.notifications.conftest import event

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ORDER = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
COMPOSER = MailComposer(config.Mail(sender="Market <shop@market.test>"))
HEADERS = [
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "Auto-Submitted",
    "X-Request-Id",
    "MIME-Version",
    "Content-Type",
]

_hostile_text = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    [
        "a@b.example\r\nBcc: x@evil.example",
        "a@b.example\nSubject: x",
        "a@b.example\x00",
        "=?utf-8?q?x?=@b.example",
        '"a b"@b.example',
        "a@b@c.example",
    ]
)


def _message(value: dict[str, object], **headers: str) -> Message:
    pairs = tuple((k.replace("_", "-"), v.encode("utf-8", "surrogatepass")) for k, v in headers.items())
    return Message("orders", 0, 0, b"k", msgspec.json.encode(value), pairs)


def _parsed(content: bytes) -> EmailMessage:
    return BytesParser(_class=EmailMessage, policy=policy.default).parsebytes(content)


@given(
    user=_hostile_text,
    email=st.none() | _hostile_text,
    name=_hostile_text,
    request_id=_hostile_text,
    event_id=_hostile_text,
)
@example(
    user="x",
    email="a" * 64 + "@" + "b" * 60 + "." + "c" * 60 + "." + "d" * 60 + ".example",
    name="x",
    request_id="r" * 128,
    event_id="i" * 128,
)
@example(
    user="ann@example.test",
    email=None,
    name="x\r\n.\r\nMAIL FROM:<>",
    request_id="a\r\nBcc: x@y.example",
    event_id="ok",
)
@example(user="ann@example.test", email=None, name="\u202egnp.exe", request_id="é", event_id="a>\r\nX: y")
def test_no_text_of_an_event_can_add_or_change_a_header(
    user: str, email: str | None, name: str, request_id: str, event_id: str
) -> None:
    items = [{"product_id": "p", "name": name, "quantity": 1, "unit_price": "1.00"}]
    value = event(ORDER, user=user, email=email, items=items, total="1.00")
    try:
        notification = parse_notification(_message({**value, "id": event_id}, x_request_id=request_id))
    except InvalidEvent:
        notification = parse_notification(_message(value, x_request_id=request_id))
    assert notification is not None
    if notification.recipient is None:
        assert not any(a and parse_mail_address(a) for a in (user, email))
        return
    assert notification.recipient in (str(parse_mail_address(a)) for a in (user, email) if a)
    mail = COMPOSER.compose(notification, NOW)
    head, _, _ = mail.content.partition(b"\r\n\r\n")
    head.decode("ascii" if notification.recipient.isascii() else "utf-8")
    assert all(len(line) < 998 for line in mail.content.split(b"\r\n"))
    assert b"\n" not in mail.content.replace(b"\r\n", b"")
    assert b"\r" not in mail.content.replace(b"\r\n", b"")
    parsed = _parsed(mail.content)
    assert not parsed.defects
    assert [h for h in parsed if h != "X-Request-Id"] == [h for h in HEADERS if h != "X-Request-Id"]
    assert parsed["To"] == notification.recipient
    assert parsed["Subject"] == "Your order 099A8057 is confirmed"
    assert parsed["Message-ID"] == f"<{notification.event_id}@market.test>"
    assert parsed["X-Request-Id"] in (None, request_id)
    assert {part.get_content_type() for part in parsed.walk()} == {"multipart/alternative", "text/plain", "text/html"}
    assert notification.lines[0].name in parsed.get_body(("plain",)).get_content()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "quantity", [2_147_483_648, 10**30, -(10**30), 10**400], ids=["more", "huge", "less", "longest"]
)
def test_an_event_with_an_amount_that_cannot_be_written_is_invalid(quantity: int) -> None:
    items = [{"product_id": "p", "name": "x", "quantity": 1, "unit_price": "99999999.999"}]
    value = msgspec.json.encode(event(ORDER, user="a@b.example", items=items))
    largest, larger = (
        Message("orders", 0, 0, b"k", value.replace(b'"quantity":1', f'"quantity":{number}'.encode()))
        for number in (2_147_483_647, quantity)
    )
    notification = parse_notification(largest)
    assert notification is not None
    assert b"214748364697852516.353" in COMPOSER.compose(notification, NOW).content
    with pytest.raises(InvalidEvent, match=r"data\.items\[0\]\.quantity"):
        parse_notification(larger)


def test_the_same_event_has_the_same_message_id_and_another_event_a_different_one() -> None:
    created, cancelled = (
        parse_notification(_message(event(ORDER, event_type, user="a@b.example")))
        for event_type in (events.CREATED, events.CANCELLED)
    )
    assert created is not None
    assert cancelled is not None
    ids = [_parsed(COMPOSER.compose(n, NOW).content)["Message-ID"] for n in (created, created, cancelled)]
    assert ids[0] == ids[1] != ids[2]


def test_names_are_escaped_in_html_and_unchanged_in_text() -> None:
    items = [{"product_id": "p", "name": "<script>alert('x')</script> \"&\"", "quantity": 1, "unit_price": "1.00"}]
    notification = parse_notification(_message(event(ORDER, user="a@b.example", items=items)))
    assert notification is not None
    parsed = _parsed(COMPOSER.compose(notification, NOW).content)
    html = parsed.get_body(("html",)).get_content()  # type: ignore[union-attr]
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &#34;&amp;&#34;" in html
    assert "<script" not in html
    assert "<script>alert('x')</script> \"&\"" in parsed.get_body(("plain",)).get_content()  # type: ignore[union-attr]


@pytest.mark.parametrize("field", ["recipient", "event_id", "request_id"])
@pytest.mark.parametrize(
    "value", ["a\r\nBcc: x@y.example", "a\nb", "a\rb", "a\x00", "é@b.example", "x" * 1_000, " ", "a\u2028b"]
)
def test_a_header_that_is_not_a_single_line_of_ascii_raises_an_error_unless_it_is_an_international_recipient(
    field: str, value: str
) -> None:
    notification = parse_notification(_message(event(ORDER, user="a@b.example")))
    assert notification is not None
    try:
        mail = COMPOSER.compose(replace(notification, **{field: value}), NOW)
    except ValueError:
        return
    # Within angle brackets a space is harmless.
    assert (field, value) in (("event_id", " "), ("recipient", "é@b.example"))
    assert len(_parsed(mail.content).keys()) == 8


def test_the_sender_name_may_be_in_any_alphabet() -> None:
    notification = parse_notification(_message(event(ORDER, user="a@b.example")))
    assert notification is not None
    for sender, name in (
        ("Лавка <shop@market.test>", "Лавка"),
        ('"Shop, the" <shop@market.test>', "Shop, the"),
        ("shop@market.test", ""),
    ):
        parsed = _parsed(MailComposer(config.Mail(sender=sender)).compose(notification, NOW).content)
        [address] = parsed["From"].addresses
        assert (address.display_name, address.addr_spec) == (name, "shop@market.test")


@pytest.mark.parametrize("character", ["a", '"', "\u00e9", "\u0416", "\u8336", "\U0001fad6"])
def test_the_longest_name_and_address_of_a_sender_fit_in_the_header(character: str) -> None:
    notification = parse_notification(_message(event(ORDER, user="a@b.example")))
    assert notification is not None
    address = f"{'s' * 64}@{'d' * 63}.{'d' * 63}.{'d' * 53}.example"
    name = character * 80
    quoted = name.replace('"', '\\"')
    mail = MailComposer(config.Mail(sender=f'"{quoted}" <{address}>')).compose(notification, NOW)
    [parsed] = _parsed(mail.content)["From"].addresses
    assert (parsed.display_name, parsed.addr_spec) == (name, address)
    with pytest.raises(ValueError, match="the name in from must have at most 80 characters, got 81"):
        config.Mail(sender=f'"{quoted}a" <shop@market.test>')


@given(st.text(st.characters(codec="utf-8"), max_size=300))
@example("a\r\nb\rc\nd\r")
@example("x" * 999)
@example("é\n" + "x" * 999)
@example("a\x00b")
@example(".\n..\nFrom a \n")
def test_any_text_survives_encoding_and_decoding(text: str) -> None:
    encoded = _part("plain", text)
    assert b"\0" not in encoded
    assert encoded.isascii()
    assert all(len(line) <= 998 for line in encoded.split(b"\r\n"))
    assert b"\r" not in encoded.replace(b"\r\n", b"")
    part = BytesParser(_class=EmailMessage, policy=policy.default).parsebytes(encoded)
    assert not part.defects
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    assert part.get_content().replace("\r\n", "\n").rstrip("\n") == lines.rstrip("\n")


@pytest.mark.parametrize(
    "sender",
    [
        "",
        "shop",
        "Market <shop>",
        "a@b.example\r\nBcc: x@y.example",
        "Mar\nket <shop@market.test>",
        "a@b.example, c@d.example",
    ],
)
def test_a_sender_without_a_valid_address_is_rejected_by_the_configuration(sender: str) -> None:
    with pytest.raises((ValueError, msgspec.ValidationError)):
        msgspec.convert({"from": sender}, config.Mail)
