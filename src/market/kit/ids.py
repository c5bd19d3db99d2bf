"""Ids that we mint."""

from __future__ import annotations

from uuid import UUID

from uuid_utils.compat import uuid7


def new_id() -> UUID:
    """A UUID of version 7 (RFC 9562): in order of time, so that indexes grow at one end."""
    return uuid7()
