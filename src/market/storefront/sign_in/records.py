"""A person who has signed in or is about to, and the encrypted cookies that store this."""

from __future__ import annotations

from msgspec import Struct


class Person(Struct, frozen=True):
    """Somebody who has signed in.

    subject: the user of their orders. name: shown in pages. roles: names of the shop's roles, in alphabetical order.
    """

    subject: str
    name: str
    roles: tuple[str, ...] = ()


class Grant(Struct, frozen=True, kw_only=True):
    """The tokens that the issuer has granted. Times are in seconds since 1970.

    renew_at: when the token should be renewed, before `expires_at`
    refresh_token, id_token: "" if the issuer has sent none
    """

    person: Person
    token: str
    expires_at: float
    renew_at: float
    refresh_token: str = ""
    id_token: str = ""

    def __repr__(self) -> str:
        """Leave the tokens out."""
        return f"Grant({self.person!r})"


class Access(Struct, frozen=True, kw_only=True):
    """The cookie with the access token of a session.

    session_id: of the session to which it belongs; it is invalid in any other
    ends_at: when the person must sign in again, however often the token was renewed
    """

    session_id: str
    person: Person
    token: str
    expires_at: float
    renew_at: float
    ends_at: float

    def __repr__(self) -> str:
        """Leave the token out."""
        return f"Access({self.person!r})"


class Renewal(Struct, frozen=True, kw_only=True):
    """The cookie with the refresh token of a session, and with the ID token, which signing out at the issuer needs."""

    session_id: str
    refresh_token: str
    id_token: str = ""

    def __repr__(self) -> str:
        """Leave the tokens out."""
        return "Renewal()"


class NotSignedIn(Exception):
    """A sign-in failed. The text is for the log, and contains no token. reason: the label of SIGN_INS_FAILED."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class Attempt(Struct, frozen=True, kw_only=True):
    """The cookie of a sign-in that has started.

    state, nonce: bind the authorization response and the ID token to this browser
    verifier: the code verifier of PKCE
    next: the path to return to
    """

    state: str
    nonce: str
    verifier: str
    next: str

    def __repr__(self) -> str:
        """Leave the secrets out."""
        return "Attempt()"
