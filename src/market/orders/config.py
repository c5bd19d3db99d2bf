"""The configuration of orders."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from market.kit import config as kit_config
from market.kit.auth.config import ServiceIdentity, SignInConfig
from market.kit.config import Admission, GrpcUpstream, Http, HttpUpstream, NonEmptyStr, Seconds, Section
from market.kit.kafka_settings import check_options


class MongoDB(Section, frozen=True, kw_only=True):
    """The database of the orders. `timeout_seconds` limits one operation, including the driver's own retries."""

    uri: NonEmptyStr
    database: Annotated[
        str,
        Meta(
            pattern=r'^[^/\\. "$*<>:|?\x00]{1,63}$',
            extra={
                "rule": "must be the name of a MongoDB database: 1 to 63 characters, without spaces and without any of "
                r'/\."$*<>:|?'
            },
        ),
    ] = "orders"
    pool_size: Annotated[int, Meta(ge=4, le=500)] = 64
    timeout_seconds: Seconds = 2.5

    def __post_init__(self) -> None:
        # The error does not show the URI, which may contain a password. A mongodb+srv URI is not checked, because that
        # needs a DNS query.
        if not self.uri.startswith("mongodb+srv://"):
            try:
                parse_uri(self.uri, validate=True)
            except (PyMongoError, ValueError):
                raise ValueError("uri must be a MongoDB connection string such as mongodb://host:27017/") from None


class Kafka(kit_config.Kafka, frozen=True, kw_only=True):
    """Where events are published, and how their topic is created."""

    # The number of partitions of the topic. With 0, the service does not create the topic: the broker has to.
    partitions: Annotated[int, Meta(ge=0, le=1000)] = 12
    # The maximum time for delivering an event to Kafka, including retries. Must be less than `recovery.lease_seconds`.
    delivery_seconds: Seconds = 20.0
    # How long the command `migrate` waits for Kafka. If Kafka is not available by then, the service creates the topic
    # later.
    create_seconds: Seconds = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self)


class Recovery(Section, frozen=True, kw_only=True):
    """Recovery, which rejects overdue orders and retries stock releases, and the relay, which publishes events."""

    # A pending order older than this is rejected. Must be at least three times `create_order_timeout_seconds`.
    reject_after_seconds: Seconds = 60.0
    # The pause between two passes of recovery, and the minimum time before a failed stock release is retried.
    interval_seconds: Seconds = 5.0
    # How long a lease on an order's outbox is valid.
    lease_seconds: Seconds = 30.0
    # Unsent events and stock releases that are older than this are listed as unfinished orders.
    unfinished_after_seconds: Seconds = 30.0
    # The pause between two passes of the relay.
    relay_interval_seconds: Seconds = 1.0


class Config(SignInConfig, frozen=True, kw_only=True):
    """The service's configuration file."""

    http: Http
    # Limits on concurrent requests that place or list orders. The weight of a request is its number of order lines,
    # estimated from the body (when placing an order) or from the stored bytes of the page (when listing orders).
    admission: Admission = Admission()
    mongodb: MongoDB
    inventory: GrpcUpstream
    products: HttpUpstream
    # Where the service gets the token that it sends to inventory. None: inventory does not require sign-in.
    service_identity: ServiceIdentity | None = None
    kafka: Kafka
    recovery: Recovery = Recovery()
    # The deadline of POST /api/order.
    create_order_timeout_seconds: Seconds = 10.0
    # The deadline of every other request.
    default_timeout_seconds: Seconds = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.testing:
            # Tests use short times, for which these rules do not hold.
            return
        if self.recovery.reject_after_seconds < 3 * self.create_order_timeout_seconds:
            raise ValueError(
                "recovery.reject_after_seconds: must be at least three times create_order_timeout_seconds, or orders "
                "in flight would be rejected"
            )
        if self.kafka.delivery_seconds >= self.recovery.lease_seconds:
            raise ValueError(
                "kafka.delivery_seconds: must be below recovery.lease_seconds, or two relays could send the same event"
            )
