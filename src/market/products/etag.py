"""Entity tags: a product's version in quotes. `available` has no part in it, so reading it changes no tag."""

from __future__ import annotations

import re

from market.kit.errors import BadInput

_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_LIST = re.compile(rf"\s*(?:{_TAG.pattern})?(?:\s*,\s*(?:{_TAG.pattern})?)*\s*")
_OURS = re.compile(r'"([1-9][0-9]{0,17})"')


def write(version: int) -> str:
    return f'"{version}"'


def matching(header: bytes | None) -> list[int] | None:
    """The versions that `If-Match` allows; None: any. Weak tags and those of others match nothing (RFC 9110).

    Raises BadInput.
    """
    if header is None or header.strip() == b"*":
        return None
    value = header.decode("latin-1")
    if not _LIST.fullmatch(value) or not value.strip(" \t,"):
        raise BadInput("If-Match", "must be * or entity tags in quotes")
    return [int(ours[1]) for tag in _TAG.findall(value) if (ours := _OURS.fullmatch(tag))]


def seen(header: bytes, version: int) -> bool:
    """Whether `If-None-Match` names this version; compared weakly, and what is unreadable names none."""
    value = header.decode("latin-1")
    return value.strip() == "*" or any(tag.removeprefix("W/") == write(version) for tag in _TAG.findall(value))
