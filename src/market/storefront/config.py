"""The storefront's configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from market.kit.auth.config import SignInConfig
from market.kit.config import Http, HttpUpstream, Section, check_url

Secret = Annotated[str, Meta(min_length=32)]


class Cookies(Section, frozen=True, kw_only=True):
    """The signatures of the cookies."""

    # The first one signs; cookies that any of them has signed are accepted. To rotate, put a new one in front.
    secrets: Annotated[tuple[Secret, ...], Meta(min_length=1)]

    def __repr__(self) -> str:
        return "Cookies()"


class Config(SignInConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    http: Http
    # The public GraphQL API, through which the storefront reaches the shop.
    gateway: HttpUpstream
    cookies: Cookies
    # The address under which browsers reach the shop, such as https://shop.example.com. With https, browsers send the
    # cookies over TLS only. Without it, the address is http and the request's own host.
    public_url: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.public_url is not None:
            check_url(self.public_url, "https", "http")
            if self.public_url.count("/") != 2:
                raise ValueError(f"public_url must not have a path, got {self.public_url}")
