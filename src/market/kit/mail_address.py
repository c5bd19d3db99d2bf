"""E-mail addresses, including those with internationalized domains and local parts (RFC 5321, 5890, 6531)."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import idna

# The maximum number of octets of an address and of its local part, in the form in which they are sent.
_MAX_OCTETS = 254
_MAX_LOCAL_OCTETS = 64
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})+")
# The first letters of the Unicode categories of visible characters: letters, marks, numbers, punctuation and symbols.
_VISIBLE = "LMNPS"


@dataclass(frozen=True, slots=True)
class MailAddress:
    """An address to which a mail can be sent.

    domain: in its ASCII form, such as xn--bcher-kva.example
    """

    local_part: str
    domain: str

    @property
    def needs_smtputf8(self) -> bool:
        """Whether every mail server must support the extension SMTPUTF8, because the local part is not ASCII.

        Unlike a domain, a local part cannot be converted to ASCII.
        """
        return not self.local_part.isascii()

    def __str__(self) -> str:
        return f"{self.local_part}@{self.domain}"


def parse_mail_address(value: str) -> MailAddress | None:
    """Return the address, or None if no mail can be sent to it.

    The local part must be a dot-atom, and the domain must have at least two labels.
    """
    if len(value) > _MAX_OCTETS:
        return None
    local_part, _, domain = value.rpartition("@")
    # Normalize before checking the length, because the normal form can be longer.
    local_part = unicodedata.normalize("NFC", local_part)
    if not _is_dot_atom(local_part):
        return None
    ascii_domain = domain if domain.isascii() else _ascii_form(domain)
    address = MailAddress(local_part, ascii_domain)
    # "=?" looks like an encoded word (RFC 2047). Mail software could decode it, and send the mail to someone else.
    if not _DOMAIN.fullmatch(ascii_domain) or "=?" in local_part or len(str(address).encode()) > _MAX_OCTETS:
        return None
    return address


def _is_dot_atom(local_part: str) -> bool:
    try:
        octets = len(local_part.encode())
    except UnicodeEncodeError:
        # It contains a surrogate.
        return False
    return octets <= _MAX_LOCAL_OCTETS and all(map(_is_atom, local_part.split(".")))


def _is_atom(text: str) -> bool:
    # A visible character outside ASCII is allowed wherever a letter is allowed (RFC 6531).
    with_ascii_letters = "".join("a" if c > "\x7f" and unicodedata.category(c)[0] in _VISIBLE else c for c in text)
    return _ATOM.fullmatch(with_ascii_letters) is not None


def _ascii_form(domain: str) -> str:
    """Return the domain in ASCII, as browsers and mail programs convert it (UTS 46). Empty if that is impossible."""
    try:
        return idna.encode(domain, uts46=True, std3_rules=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return ""
