"""Who calls in the tests: people with each role, services, and tokens that must not be accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from market.kit.auth.identity import Role
from tests.authorization.shop import SUBJECTS
from tests.support.issuer import Issuer, SigningKey

# The buyer that the orders of the tests belong to.
OWNER = "ann"
HOUR = 3600


@dataclass(frozen=True)
class Caller:
    """A caller and its token. `role`: None if it has not signed in. `service`: its name, if inventory knows it."""

    name: str
    make_token: Callable[[Issuer], str | None]
    role: Role | None = None
    subject: str = ""
    service: str | None = None
    has_valid_token: bool = True

    def __str__(self) -> str:
        return self.name


def _signed_in(name: str, role: Role, subject: str, service: str | None = None) -> Caller:
    roles = () if role is Role.BUYER else (role.value,)
    email = f"{subject}@people.example"

    def make_token(issuer: Issuer) -> str:
        return issuer.token(subject, roles=roles, email=email, expires_in=HOUR)

    return Caller(name, make_token, role, subject, service)


def _invalid(name: str, make_token: Callable[[Issuer], str]) -> Caller:
    return Caller(name, make_token, has_valid_token=False)


def _altered(issuer: Issuer) -> str:
    """Return a token of the owner with the payload of a merchant."""
    header, _, signature = issuer.token(OWNER).split(".")
    return f"{header}.{_merchant(issuer).split('.')[1]}.{signature}"


def _merchant(signer: Issuer, /, **arguments: Any) -> str:
    return signer.token("mia", **{"roles": ["merchant"], "expires_in": HOUR, **arguments})


def _of_another_key(issuer: Issuer) -> str:
    real = issuer.signing_key
    return _merchant(issuer, key=SigningKey(real.algorithm, kid=real.kid))


# Each would be a merchant if it were accepted.
INVALID = [
    _invalid("broken token", lambda _: "this.is.not-a-token"),
    _invalid("altered token", _altered),
    _invalid("expired token", partial(_merchant, expires_in=-HOUR)),
    _invalid("token that is not valid yet", partial(_merchant, not_before=HOUR)),
    _invalid("token for another audience", partial(_merchant, audience="warehouse")),
    _invalid("token of another issuer", partial(_merchant, issuer="http://127.0.0.1:1")),
    _invalid("key with the same kid", _of_another_key),
    _invalid("alg none", partial(_merchant, algorithm="none")),
    _invalid("HMAC with the public key", partial(_merchant, algorithm="HS256")),
]
NOBODY = Caller("no token", lambda _: None)
BUYER = _signed_in("buyer", Role.BUYER, OWNER)
ANOTHER_BUYER = _signed_in("another buyer", Role.BUYER, "ben")
MERCHANT = _signed_in("merchant", Role.MERCHANT, "mia")
OPERATOR = _signed_in("operator", Role.OPERATOR, "olga")
SERVICE = _signed_in("service", Role.SERVICE, "warehouse")
SERVICES = [_signed_in(f"service {name}", Role.SERVICE, subject, name) for name, subject in SUBJECTS.items()]
SIGNED_IN = [BUYER, ANOTHER_BUYER, MERCHANT, OPERATOR, SERVICE, *SERVICES]

CALLERS = [NOBODY, *INVALID, *SIGNED_IN]
