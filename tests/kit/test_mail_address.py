"""Which addresses mails can be sent to, and in which form."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from market.kit.mail_address import parse_mail_address


@pytest.mark.parametrize(
    "address", ["a@b.co", "first.last+tag@sub.example.test", "o'brien@example.ie", "A@Example.TEST"]
)
def test_an_ascii_address_is_unchanged(address: str) -> None:
    parsed = parse_mail_address(address)
    assert str(parsed) == address
    assert parsed is not None
    assert not parsed.needs_smtputf8


@pytest.mark.parametrize(
    ("address", "sent"),
    [
        ("ann@b\u00fccher.example", "ann@xn--bcher-kva.example"),
        ("ann@B\u00dcCHER.example", "ann@xn--bcher-kva.example"),
        # Decomposed, as some systems type it.
        ("ann@bu\u0308cher.example", "ann@xn--bcher-kva.example"),
        ("ann@stra\u00dfe.example", "ann@xn--strae-oqa.example"),
        ("ann@\u4f8b\u3048\u3002\u30c6\u30b9\u30c8", "ann@xn--r8jz45g.xn--zckzah"),
        ("ann@\u043f\u043e\u0447\u0442\u0430.\u0440\u0444", "ann@xn--80a1acny.xn--p1ai"),
    ],
)
def test_an_international_domain_has_its_ascii_form(address: str, sent: str) -> None:
    parsed = parse_mail_address(address)
    assert str(parsed) == sent
    assert parsed is not None
    assert not parsed.needs_smtputf8


@pytest.mark.parametrize(
    ("address", "sent"),
    [
        ("j\u00fcrgen@example.test", "j\u00fcrgen@example.test"),
        ("ju\u0308rgen@b\u00fccher.example", "j\u00fcrgen@xn--bcher-kva.example"),
        ("\u0430\u043d\u043d\u0430.\u043f\u0435\u0442\u0440\u043e\u0432\u0430@example.test", None),
        ("\U0001f600@example.test", None),
    ],
)
def test_an_international_local_part_needs_smtputf8(address: str, sent: str | None) -> None:
    parsed = parse_mail_address(address)
    assert str(parsed) == (sent or address)
    assert parsed is not None
    assert parsed.needs_smtputf8


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "a",
        "a@b",
        "@b.co",
        "a@.co",
        "a@b..co",
        "a..b@c.de",
        ".a@b.co",
        "a.@b.co",
        "a@b.co\n",
        "a@b.co\r\nBcc: x@y.zz",
        "a b@c.de",
        "a@-b.co",
        "a@b_c.de",
        "a" * 65 + "@b.co",
        "\u00e4" * 33 + "@b.co",
        # 60 octets, but 120 in the normal form that is sent.
        "\u0958" * 20 + "@b.co",
        "a" * 250 + "@b.co",
        "a@b@c.de",
        '"a b"@c.de',
        "a@[127.0.0.1]",
        "=?utf-8?q?a?=@b.co",
        "a\u200b@b.co",
        "a\u202e@b.co",
        "a\u2028@b.co",
        "a\ud800@b.co",
        "a@\u00e4..co",
        "a@\u200d.co",
        "a@" + "\u00e4" * 63 + ".co",
    ],
)
def test_anything_else_is_not_an_address(bad: str) -> None:
    assert parse_mail_address(bad) is None


@given(st.text() | st.builds("{}@{}".format, st.text(), st.text()) | st.builds("{}@b.co".format, st.text(min_size=1)))
@example("\u1e9e@b.co")
def test_an_address_never_breaks_a_header_or_a_command(value: str) -> None:
    parsed = parse_mail_address(value)
    if parsed is not None:
        assert str(parsed).isprintable()
        assert parsed.domain.isascii()
        assert not set(str(parsed)) & set(' <>,;:\\"()[]')
        # Parsing what is sent changes nothing.
        assert parse_mail_address(str(parsed)) == parsed
