"""Who sent the request that is being handled: the identity that a token proves, and the token itself."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a caller may do in the shop, by the table in market.contracts.access."""

    BUYER = "buyer"
    MERCHANT = "merchant"
    OPERATOR = "operator"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller.

    A caller without a token has no subject. It has no roles either, except in mode `open`, where it has all of them.

    subject: the token's `sub`, 1 to 200 characters; "" if the caller has not signed in.
    email: the token's e-mail address, if the issuer has verified it. Its syntax has not been checked.
    service: the name of the calling service, if the subject belongs to a known service (inventory's setting
        `auth.callers`); None otherwise.
    """

    subject: str = ""
    roles: frozenset[Role] = frozenset()
    email: str | None = None
    service: str | None = None

    def has(self, *roles: Role) -> bool:
        """Return whether the caller has at least one of the roles."""
        return not self.roles.isdisjoint(roles)

    @property
    def signed_in(self) -> bool:
        """Whether the caller has sent a valid token."""
        return bool(self.subject)


# A caller without a token.
ANONYMOUS = Identity()
# Every caller in mode `open`: nobody signs in, and everything is permitted.
UNRESTRICTED = Identity(roles=frozenset(Role))

# Background work has no caller: it acts as the service itself.
identity: ContextVar[Identity] = ContextVar("identity", default=ANONYMOUS)
# The caller's own bearer token; "" if there is none. It is forwarded to upstreams, and must never be logged.
token: ContextVar[str] = ContextVar("token", default="")
