"""The storefront's configuration."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from market.kit.auth.config import SignInConfig
from market.kit.config import Http, HttpUpstream, NonEmptyStr, Section
from market.kit.host_and_port import check_url


class Cookies(Section, frozen=True, kw_only=True):
    """The signatures and the encryption of the cookies."""

    # One secret of at least 32 characters per line. The first one signs and encrypts; cookies made with any of them are
    # accepted (docs/security.md, "Rotating keys and secrets"). Read at start.
    secrets_file: NonEmptyStr


class SignIn(Section, frozen=True, kw_only=True):
    """The storefront as a client of the issuer (docs/security.md, "The storefront's sign-in")."""

    client_id: NonEmptyStr
    # None for a public client. The secret must come from the environment: ${NAME}.
    client_secret: NonEmptyStr | None = None
    scope: NonEmptyStr = "openid email"
    # Further parameters that the issuer requires, such as the audience of the token at Auth0.
    authorization_parameters: dict[str, str] = msgspec.field(default_factory=dict)
    # After this time people must sign in again, however often their token was renewed.
    max_session_seconds: Annotated[int, Meta(ge=60, le=2_592_000)] = 43_200

    def __post_init__(self) -> None:
        if "openid" not in self.scope.split():
            raise ValueError(f"scope must contain openid, got {self.scope}")

    def __repr__(self) -> str:
        """Leave the secret out."""
        return f"SignIn({self.client_id!r})"


class Pages(Http, frozen=True, kw_only=True):
    # For the form of an import, which contains its file or its rows. Other forms have at most 1 MiB.
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 4_194_304


class Imports(Section, frozen=True, kw_only=True):
    """The import of files at the desk (docs/storefront.md, "Importing a file")."""

    # The maximum size of a file, if http.max_body_bytes permits it.
    max_file_bytes: Annotated[int, Meta(ge=1024)] = 3_145_728
    # The maximum number of products and invalid rows of a file.
    max_rows: Annotated[int, Meta(ge=1, le=100_000)] = 20_000
    # How many requests with a file or with rows a process handles concurrently. Others wait for some seconds, and then
    # get 503.
    max_in_flight: Annotated[int, Meta(ge=1, le=100)] = 2
    # The concurrent calls to the gateway of each of these requests.
    max_calls: Annotated[int, Meta(ge=1, le=64)] = 4


class Config(SignInConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    http: Pages
    # The public GraphQL API, through which the storefront reaches the shop.
    gateway: HttpUpstream
    # The REST API of notifications, for the mails that could not be sent.
    notifications: HttpUpstream
    # The REST interfaces of orders for the desk, inside the cluster. None: the desk cannot show what was
    # not sold, and which orders are unfinished.
    orders: HttpUpstream | None = None
    cookies: Cookies
    # Must be set if auth.mode is required. Otherwise it is not used.
    sign_in: SignIn | None = None
    imports: Imports = Imports()
    # The address under which browsers reach the shop, such as https://shop.example.com. With https, browsers send the
    # cookies over TLS only. Without it, the address is http and the request's own host.
    public_url: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auth.is_required and self.sign_in is None:
            raise ValueError("sign_in must be set if auth.mode is required")
        if self.sign_in is not None and self.sign_in.client_id == self.auth.audience:
            # The client id is the audience of ID tokens, which would then be accepted as access tokens.
            raise ValueError("sign_in.client_id must not be auth.audience, got the same for both")
        if self.public_url is not None:
            check_url(self.public_url, "https", "http")
            if self.public_url.count("/") != 2:
                raise ValueError(f"public_url must not have a path, got {self.public_url}")
