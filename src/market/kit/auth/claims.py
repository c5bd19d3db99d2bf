"""Checks the claims of a token, and turns them into an identity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from joserfc.errors import ExpiredTokenError, InvalidClaimError, MissingClaimError
from joserfc.jwt import JWTClaimsRegistry

from market.kit.auth.config import Auth
from market.kit.auth.identity import Identity, Role
from market.kit.auth.rejection import TokenRejected
from market.kit.errors import BadInput
from market.kit.text import validate_display_text

MAX_SUBJECT_CHARACTERS = 200
_MAX_EMAIL_CHARACTERS = 254

_INVALID_SUBJECT = ("claims", f"has an invalid sub; it must have 1 to {MAX_SUBJECT_CHARACTERS} visible characters")


def check_claims(claims: Mapping[str, Any], config: Auth, now: float) -> None:
    """Check issuer, audience and times. Raises TokenRejected."""
    rules = JWTClaimsRegistry(
        now=int(now),
        leeway=config.leeway_seconds,
        iss={"essential": True, "value": config.issuer or ""},
        aud={"essential": True, "value": config.audience},
        exp={"essential": True},
        sub={"essential": True},
    )
    # In a fixed order. Otherwise the reason would depend on the order of the claims in the token.
    checked = {name: claims[name] for name in ("iss", "aud", "exp", "nbf", "iat", "sub") if name in claims}
    try:
        rules.validate(checked)
    except MissingClaimError:
        raise TokenRejected("claims", "lacks one of the claims iss, aud, exp and sub") from None
    except ExpiredTokenError:
        raise TokenRejected("expired", "has expired") from None
    except InvalidClaimError as e:
        raise TokenRejected(*_rule(e.claim, checked[e.claim])) from None


def _rule(claim: str, value: object) -> tuple[str, str]:
    """Return the arguments of TokenRejected, (rule, reason), for a claim that joserfc has rejected."""
    if claim == "iss":
        return "issuer", "was issued by another issuer"
    if claim == "aud":
        return "audience", "was issued for another audience"
    if claim == "sub":
        return _INVALID_SUBJECT
    if claim in ("nbf", "iat") and isinstance(value, int | float) and not isinstance(value, bool):
        return "not_yet_valid", "is not valid yet" if claim == "nbf" else "was issued in the future"
    return "claims", f"has an invalid {claim}; it must be a number of seconds"


def identify(claims: Mapping[str, Any], config: Auth, callers: Mapping[str, str]) -> Identity:
    """Return the identity that the claims prove.

    An e-mail address is ignored if the issuer has not verified it, or if it is shorter than 3 or longer than 254
    characters. Its syntax is not checked.

    callers: maps the subject of each known service's token to the service's name.

    Raises TokenRejected if the subject or the roles are not valid.
    """
    subject = claims["sub"]
    try:
        validate_display_text("sub", subject, min_length=1, max_length=MAX_SUBJECT_CHARACTERS)
    except BadInput:
        raise TokenRejected(*_INVALID_SUBJECT) from None
    service = callers.get(subject)
    roles = {config.roles[name] for name in _role_names(claims, config.roles_claim) if name in config.roles}
    if service is not None:
        roles.add(Role.SERVICE)
    # A caller without a known role is a buyer.
    return Identity(subject, frozenset(roles) or frozenset({Role.BUYER}), _verified_email(claims), service)


def _verified_email(claims: Mapping[str, Any]) -> str | None:
    email = claims.get("email")
    if not isinstance(email, str) or claims.get("email_verified") is not True:
        return None
    return email if 3 <= len(email) <= _MAX_EMAIL_CHARACTERS else None


def _role_names(claims: Mapping[str, Any], path: str) -> list[str]:
    """Return the issuer's names of the roles; none if the claim is absent. Raises TokenRejected."""
    value: Any = claims
    # A claim whose name itself contains dots, such as https://example.com/roles, takes precedence over a path.
    for name in [path] if path in claims else path.split("."):
        if not isinstance(value, Mapping):
            raise TokenRejected("claims", "has roles that are not a list of strings")
        value = value.get(name)
        if value is None:
            return []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TokenRejected("claims", "has roles that are not a list of strings")
    return value
