"""Classifies error replies of the mail server: about a single mail, or about our account."""

from __future__ import annotations

import re

from aiosmtplib import SMTPResponseException

# An enhanced status code (RFC 3463): class, subject and detail.
_ENHANCED = re.compile(r"([245])\.(\d{1,3}\.\d{1,3})(?!\d)")
# Replies to MAIL FROM that concern our login or TLS (RFC 4954, RFC 3207).
_LOGIN_CODES = {530, 534, 535, 538}
# The mail is too large (RFC 1870).
_TOO_LARGE = 552
# Errors of a single mail that a server may report at MAIL FROM: its size or its recipient.
_MAIL_ERRORS = {"1.1", "1.2", "1.3", "1.6", "2.3", "3.4"}
# A limit of the sending account, as large providers report it: 5.4.5 Daily user sending limit exceeded.
_SENDING_LIMIT = "4.5"


def is_about_sender(reply: SMTPResponseException) -> bool:
    """Return whether an error reply to MAIL FROM is about our account, so that every mail would get the same reply.

    True for all permanent errors (5xx) except those about the size or the recipient, and for temporary errors (4xx)
    about a policy or a sending limit.
    """
    enhanced = _enhanced_code(reply)
    if reply.code in _LOGIN_CODES:
        return True
    if reply.code >= 500:
        return reply.code != _TOO_LARGE and enhanced not in _MAIL_ERRORS
    return is_policy_or_limit(reply)


def is_policy_or_limit(reply: SMTPResponseException) -> bool:
    """Return whether the reply is about a policy (x.7.x) or a sending limit of our account (x.4.5).

    A single such reply to RCPT TO or DATA may be about the recipient only. So the caller has to count consecutive ones.
    """
    enhanced = _enhanced_code(reply)
    return enhanced.startswith("7.") or enhanced == _SENDING_LIMIT


def _enhanced_code(reply: SMTPResponseException) -> str:
    """Return subject and detail of the enhanced status code, such as 7.1; empty if there is none."""
    match = _ENHANCED.match(reply.message.lstrip())
    return match[2] if match and match[1] == str(reply.code)[:1] else ""
