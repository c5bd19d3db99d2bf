"""The configuration of products."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from market.kit.auth.config import ServiceIdentity, SignInConfig
from market.kit.config import (
    Admission,
    GrpcUpstream,
    Http,
    NonEmptyStr,
    Postgres,
    Seconds,
    Section,
)
from market.kit.host_and_port import check_url


class Redis(Section, frozen=True, kw_only=True):
    url: NonEmptyStr
    # The limit of one cache access. A slower cache is worse than none: inventory responds in less.
    timeout_seconds: Seconds = 0.05
    # How long connections are used, plus or minus a tenth. New ones follow a change in DNS or of a certificate.
    max_connection_age_seconds: Seconds = 600.0

    def __post_init__(self) -> None:
        check_url(self.url, "redis", "rediss")


class Availability(Section, frozen=True, kw_only=True):
    # How outdated `available` may be. Each entry lives this long, plus or minus a fifth.
    ttl_seconds: Seconds = 5.0
    # How long a read may wait for inventory.
    timeout_seconds: Seconds = 1.0


class ProductsHttp(Http, frozen=True, kw_only=True):
    """The HTTP edge, with less memory for bodies and responses than by default: a product has at most 50 KiB."""

    max_in_flight_body_bytes: Annotated[int, Meta(ge=1_048_576)] = 16_777_216
    max_send_buffer_bytes: Annotated[int, Meta(ge=1_048_576)] = 16_777_216


class ReadAdmission(Admission, frozen=True, kw_only=True):
    """How many products are read concurrently. Each takes up to 128 KiB of memory."""

    # A list of the default length is small.
    small_weight: Annotated[int, Meta(ge=1)] = 20
    max_small_weight: Annotated[int, Meta(ge=1)] = 300
    max_large_weight: Annotated[int, Meta(ge=1)] = 200


class Config(SignInConfig, frozen=True, kw_only=True):
    http: ProductsHttp
    # The admission of reads. The weight of a read is the number of products that it may return.
    admission: ReadAdmission = ReadAdmission()
    postgres: Postgres
    redis: Redis
    inventory: GrpcUpstream
    # The token for calls to inventory. None is enough if the `auth.mode` of inventory is open.
    service_identity: ServiceIdentity | None = None
    availability: Availability = Availability()
    # The limit of one request, unless its X-Deadline-Ms is lower.
    request_seconds: Seconds = 3.0
