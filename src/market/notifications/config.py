"""This service's typed configuration."""

from __future__ import annotations

from email.utils import getaddresses, parseaddr
from typing import Annotated, Literal

from msgspec import Meta, field

from market.contracts import events
from market.kit import text
from market.kit.config import Base, NonEmptyStr, Port, Seconds, Section


class Kafka(Section, frozen=True, kw_only=True):
    bootstrap_servers: NonEmptyStr
    group: NonEmptyStr = "notifications"
    topic: NonEmptyStr = events.TOPIC
    dead_letter_topic: NonEmptyStr = events.DEAD_LETTER_TOPIC
    # How long the group waits for a member that says nothing; the broker sets the least, 6 s by default.
    session_timeout_seconds: Annotated[float, Meta(ge=1, le=300)] = 10.0
    # False: each start begins at the end of the topic, and what came while the service was down is not mailed.
    replay_missed: bool = True
    # True where the broker makes topics by itself when asked for one; elsewhere they are made explicitly.
    auto_create_topics: bool = False
    # On revoke: what the mails under way may take before the offsets are committed.
    revoke_seconds: Seconds = 10.0
    # Further settings of librdkafka, such as security.protocol and sasl.*.
    options: dict[str, str] = field(default_factory=dict)


class Memory(Section, frozen=True, kw_only=True):
    """The most that is held here of what is read and not yet mailed; the partitions are paused beyond it."""

    messages: Annotated[int, Meta(ge=1, le=1_000_000)] = 2_000
    bytes: Annotated[int, Meta(ge=1_048_576)] = 64 * 1024 * 1024


class Smtp(Section, frozen=True, kw_only=True):
    host: NonEmptyStr
    port: Port = 25
    tls: Literal["none", "starttls", "tls"] = "none"
    # Certificates that are trusted beside the system's: a PEM file.
    ca_file: NonEmptyStr | None = None
    username: NonEmptyStr | None = None
    password: NonEmptyStr | None = None
    # What we say in EHLO; absent: the machine's name.
    hello: (
        Annotated[
            str,
            Meta(pattern=r"^[A-Za-z0-9.:\[\]-]{1,255}$", extra={"rule": "must be a host name or an address literal"}),
        ]
        | None
    ) = None
    # The most that one answer of the mail server may take.
    timeout_seconds: Seconds = 30.0
    # Mails under way at once, each on a connection of its own.
    connections: Annotated[int, Meta(ge=1, le=100)] = 8
    # A connection that is kept for the next mail is closed after this.
    idle_seconds: Seconds = 20.0
    # The longest pause between two attempts to reach a mail server that is away.
    reconnect_seconds: Seconds = 10.0

    def __post_init__(self) -> None:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together")


class Retry(Section, frozen=True, kw_only=True):
    """Mails that are refused for now (4xx): pauses from `first_seconds`, doubled up to `most_seconds`, then a dead letter."""

    first_seconds: Seconds = 1.0
    most_seconds: Seconds = 60.0
    give_up_seconds: Seconds = 900.0


class Mail(Section, frozen=True, kw_only=True):
    # "Name <address>", or the address alone.
    sender: NonEmptyStr = field(name="from")

    def __post_init__(self) -> None:
        if (
            not self.sender.isprintable()
            or len(getaddresses([self.sender])) != 1
            or not text.is_email_address(self.address)
        ):
            raise ValueError("from must be an e-mail address, or a name and an address: Market <shop@example.com>")

    @property
    def name(self) -> str:
        return parseaddr(self.sender)[0]

    @property
    def address(self) -> str:
        return parseaddr(self.sender)[1]


class Config(Base, frozen=True, kw_only=True):
    kafka: Kafka
    smtp: Smtp
    mail: Mail
    retry: Retry = Retry()
    memory: Memory = Memory()
