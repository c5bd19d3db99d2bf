"""What products is configured with."""

from __future__ import annotations

from market.kit.config import Base, GrpcUpstream, Http, NonEmptyStr, Postgres, Seconds, Section, check_url


class Redis(Section, frozen=True, kw_only=True):
    url: NonEmptyStr
    # A cache that takes longer than asking anew is none.
    timeout_seconds: Seconds = 0.05

    def __post_init__(self) -> None:
        check_url(self.url, "redis", "rediss")


class Availability(Section, frozen=True, kw_only=True):
    # How late `available` may be; each entry's life is this, give or take a fifth.
    ttl_seconds: Seconds = 5.0
    # The most that a reader waits for inventory.
    timeout_seconds: Seconds = 1.0


class Config(Base, frozen=True, kw_only=True):
    http: Http
    postgres: Postgres
    redis: Redis
    inventory: GrpcUpstream
    availability: Availability = Availability()
