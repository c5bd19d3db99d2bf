"""What a reply of the mail server is about: the mail, or the account that sends all mails."""

from __future__ import annotations

import re

from aiosmtplib import SMTPResponseException

# RFC 3463: class, subject and detail.
_ENHANCED = re.compile(r"([245])\.(\d{1,3}\.\d{1,3})(?!\d)")
# Replies to MAIL FROM that concern our login or TLS (RFC 4954, RFC 3207).
_LOGIN_CODES = {530, 534, 535, 538}
# The mail is too large (RFC 1870).
_TOO_LARGE = 552
# What can be wrong with a single mail already at MAIL FROM: its size, or its recipient where a server says so early.
_OF_THE_MAIL = {"1.1", "1.2", "1.3", "1.6", "2.3", "3.4"}
# A limit of the sending account, as large providers report it: 5.4.5 Daily user sending limit exceeded.
_QUOTA = "4.5"


def is_about_sender(reply: SMTPResponseException) -> bool:
    """Return whether a negative reply to MAIL FROM is about our account, and so would be given to every mail.

    A permanent one is, unless it is about the size or the recipient; a temporary one is if it is about a limit or a
    policy.
    """
    enhanced = _enhanced_code(reply)
    if reply.code in _LOGIN_CODES:
        return True
    if reply.code >= 500:
        return reply.code != _TOO_LARGE and enhanced not in _OF_THE_MAIL
    return is_policy(reply)


def is_policy(reply: SMTPResponseException) -> bool:
    """Return whether the reply speaks of a policy (x.7.x) or of a limit of the account (x.4.5).

    To RCPT TO or DATA it may be about the recipient or about us: it is about us if every mail gets it.
    """
    enhanced = _enhanced_code(reply)
    return enhanced.startswith("7.") or enhanced == _QUOTA


def _enhanced_code(reply: SMTPResponseException) -> str:
    """Return subject and detail of the enhanced status code, such as 7.1; empty if there is none."""
    match = _ENHANCED.match(reply.message.lstrip())
    return match[2] if match and match[1] == str(reply.code)[:1] else ""
