"""The configuration of products."""

from __future__ import annotations

from market.kit.config import GrpcUpstream, Http, NonEmptyStr, Postgres, Seconds, Section, ServiceConfig, check_url


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


class Config(ServiceConfig, frozen=True, kw_only=True):
    http: Http
    postgres: Postgres
    redis: Redis
    inventory: GrpcUpstream
    availability: Availability = Availability()
    # The limit of one request, unless its X-Deadline-Ms is lower.
    request_seconds: Seconds = 3.0
