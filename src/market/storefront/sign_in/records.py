"""What is known of a person who has signed in, or is about to, and what their browser keeps of it, encrypted."""

from __future__ import annotations

from msgspec import Struct


class Person(Struct, frozen=True):
    """Somebody who has signed in.

    subject: whose the orders are. name: for the pages. roles: those of the shop, by name, in alphabetical order.
    """

    subject: str
    name: str
    roles: tuple[str, ...] = ()


class Grant(Struct, frozen=True, kw_only=True):
    """What the issuer has granted. Times are in seconds since 1970.

    renew_at: from when on the token is renewed; it is some time before `expires_at`
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
    """The cookie with the token that the calls of a session have.

    session_id: of the session that it belongs to; in another one it is not valid
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
    """The cookie with which the token of a session is renewed, and with which one signs out at the issuer."""

    session_id: str
    refresh_token: str
    id_token: str = ""

    def __repr__(self) -> str:
        """Leave the tokens out."""
        return "Renewal()"


class NotSignedIn(Exception):
    """A visitor was not signed in. The text is for the log, and has no token in it. reason: as in the metric."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class Attempt(Struct, frozen=True, kw_only=True):
    """The cookie of somebody who was sent to the issuer.

    state, nonce: bind the issuer's answer, and its ID token, to this browser. verifier: of PKCE. next: where to return.
    """

    state: str
    nonce: str
    verifier: str
    next: str

    def __repr__(self) -> str:
        """Leave the secrets out."""
        return "Attempt()"
