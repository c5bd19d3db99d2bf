"""Permissions: who may call which operation. The shop's table of permissions is market.contracts.access."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from market.kit.auth.identity import UNRESTRICTED, Identity, Role
from market.kit.errors import Forbidden, Unauthenticated


class Permission(StrEnum):
    """Whether a role may call an operation: not at all, only for the caller's own data, or for all data."""

    NO = "no"
    OWN = "own"
    YES = "yes"


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call one operation, by role. The service that owns the data decides which data is the caller's own.

    A caller with several roles has the widest permission of these roles.

    anonymous: for a caller without a token.
    callers: if not empty, `service` applies only to the services with these names.
    """

    anonymous: Permission
    buyer: Permission
    merchant: Permission
    operator: Permission
    service: Permission
    callers: frozenset[str] = frozenset()

    def permission(self, identity: Identity) -> Permission:
        """Return what is permitted to the caller."""
        if identity is UNRESTRICTED:
            return Permission.YES
        if not identity.roles:
            return self.anonymous
        widest = Permission.NO
        for role in identity.roles:
            permission = self._for_role(role, identity.service)
            if permission is Permission.YES:
                return permission
            if permission is Permission.OWN:
                widest = permission
        return widest

    def require(self, identity: Identity) -> Permission:
        """Return what is permitted to the caller: OWN or YES.

        If nothing is permitted, raises Unauthenticated for a caller that has not signed in, and Forbidden for others.
        """
        permission = self.permission(identity)
        if permission is Permission.NO:
            if not identity.signed_in:
                raise Unauthenticated
            raise Forbidden(f"this requires {self._who()}", role_is_missing=True)
        return permission

    def _for_role(self, role: Role, service: str | None) -> Permission:
        if role is Role.SERVICE and self.callers and service not in self.callers:
            return Permission.NO
        permission: Permission = getattr(self, role.value)
        return permission

    def _who(self) -> str:
        """Return who may call the operation, for an error message: "the role merchant or operator"."""
        if self.callers:
            return f"the identity of a service: {' or '.join(sorted(self.callers))}"
        roles = [role.value for role in Role if getattr(self, role.value) is not Permission.NO]
        return f"the role {' or '.join(roles)}" if roles else "a permission that no role has"


def check_table(table: Mapping[str, Access], operations: Iterable[str]) -> None:
    """Raise ValueError if an operation has no entry in the table."""
    if missing := sorted(set(operations) - table.keys()):
        raise ValueError(f"the table of permissions has no entry for {', '.join(missing)}")
