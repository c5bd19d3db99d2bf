"""The request header Prefer (RFC 7240)."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from market.kit.http.responses import prefers_representation


def prefers(*headers: bytes) -> bool:
    """Return the preference of a request with these headers Prefer."""
    return prefers_representation(Request({"type": "http", "headers": [(b"prefer", header) for header in headers]}))


@pytest.mark.parametrize(
    "header",
    [
        b"return=representation",
        b"Return = Representation",
        b'return\t=\t"representation"',
        b"return=representation; foo; bar=1",
        b'return=representation;foo="a, b"',
        b"respond-async, wait=10, return=representation",
        b",, return=representation ,",
        b"return=representation, return=minimal",
        b'foo="a, return=minimal", return=representation',
        b'foo="\\", return=minimal", return=representation',
        b"foo=; return=minimal, return=representation",
    ],
)
def test_a_representation_is_preferred(header: bytes) -> None:
    assert prefers(header)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b",",
        b"return",
        b"return=",
        b"return=minimal",
        b"return=minimal, return=representation",
        b"representation",
        b"return=representations",
        b"no-return=representation",
        b"re turn=representation",
        b"return=repre sentation",
        b"foo; return=representation",
        b"foo=return=representation",
        # A quoted text is one value, whatever it contains, and also if it does not end.
        b'foo="a, return=representation"',
        b'foo="\\", return=representation"',
        b'foo="a, return=representation',
        b"\xff=\xff",
    ],
)
def test_a_representation_is_not_preferred(header: bytes) -> None:
    assert not prefers(header)


def test_several_headers_are_one_list() -> None:
    assert not prefers()
    assert prefers(b"wait=1", b"return=representation")
    assert not prefers(b"return=minimal", b"return=representation")
