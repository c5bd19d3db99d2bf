"""How a table of permissions is written. The shop's own table is market.contracts.access."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Permission(StrEnum):
    """Whether a role may call an operation: not at all, for what is the caller's own, or for everything."""

    NO = "no"
    OWN = "own"
    YES = "yes"


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call one operation, by role. The service that owns the data decides what is the caller's own.

    callers: the services that may call a gRPC method, by name. Only there `service` is YES for some services alone.
    """

    nobody: Permission
    buyer: Permission
    merchant: Permission
    operator: Permission
    service: Permission
    callers: frozenset[str] = frozenset()
