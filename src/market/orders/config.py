"""The configuration of orders."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from market.kit.config import Base, GrpcUpstream, Http, HttpUpstream, NonEmptyStr, Seconds, Section


class MongoDB(Section, frozen=True, kw_only=True):
    """`timeout_seconds` is one operation's limit, retries by the driver included."""

    uri: NonEmptyStr
    database: Annotated[
        str,
        Meta(
            pattern=r'^[^/\\. "$*<>:|?\x00]{1,63}$',
            extra={
                "rule": "must be the name of a MongoDB database: 1 to 63 characters without spaces, dots or slashes"
            },
        ),
    ] = "orders"
    pool_size: Annotated[int, Meta(ge=4, le=500)] = 64
    timeout_seconds: Seconds = 2.5

    def __post_init__(self) -> None:
        # The reason leaves the URI out: it may hold a password. The servers behind mongodb+srv are DNS's to name.
        if not self.uri.startswith("mongodb+srv://"):
            try:
                parse_uri(self.uri, validate=True)
            except (PyMongoError, ValueError):
                raise ValueError("uri must be a MongoDB connection string such as mongodb://host:27017/") from None


class Kafka(Section, frozen=True, kw_only=True):
    """Where events go. `partitions` 0: the broker makes its topics by itself; else migrate makes them."""

    bootstrap_servers: NonEmptyStr
    partitions: Annotated[int, Meta(ge=0, le=1000)] = 12
    replication: Annotated[int, Meta(ge=1, le=9)] = 1
    min_insync: Annotated[int, Meta(ge=1, le=9)] = 1
    # How long an event may wait for its acknowledgement here; shorter than the relay's claim.
    delivery_seconds: Seconds = 20.0
    # How long `migrate` waits for Kafka; after that the service makes the topics, once Kafka is there.
    create_seconds: Seconds = 30.0
    # Further settings of librdkafka, such as security.protocol and sasl.username.
    options: dict[str, str] = msgspec.field(default_factory=dict)


class Recovery(Section, frozen=True, kw_only=True):
    """The loops that finish what a dead process left."""

    # A pending order older than this is rejected; at least three times the longest request deadline.
    after_seconds: Seconds = 60.0
    # Between two looks, and before a release that got no answer is tried again.
    interval_seconds: Seconds = 5.0
    # For how long the relay that claimed an order's events has them to itself.
    claim_seconds: Seconds = 30.0
    relay_interval_seconds: Seconds = 1.0


class Config(Base, frozen=True, kw_only=True):
    http: Http
    mongodb: MongoDB
    inventory: GrpcUpstream
    products: HttpUpstream
    kafka: Kafka
    recovery: Recovery = Recovery()
    # The deadline of POST, and that of every other call.
    order_seconds: Seconds = 10.0
    other_seconds: Seconds = 3.0

    def __post_init__(self) -> None:
        if self.testing:
            return
        if self.recovery.after_seconds < 3 * self.order_seconds:
            raise ValueError(
                "recovery.after_seconds: must be at least three times order_seconds, or it would reject orders under way"
            )
        if self.kafka.delivery_seconds >= self.recovery.claim_seconds:
            raise ValueError(
                "kafka.delivery_seconds: must be below recovery.claim_seconds, or two relays would send the same event"
            )
