"""The error for a token that is not valid."""

from __future__ import annotations


class TokenRejected(Exception):
    """The token breaks a rule.

    rule: the label in metrics.
    reason: worded to follow "the token", in printable ASCII without quotes and backslashes.
    """

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule
        self.reason = reason
