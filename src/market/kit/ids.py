"""Ids of new resources."""

from __future__ import annotations

from uuid import UUID

from uuid_utils.compat import uuid7


def new_id() -> UUID:
    """Return a version 7 UUID (RFC 9562). It is time-ordered, so new ids are adjacent in an index."""
    return uuid7()
