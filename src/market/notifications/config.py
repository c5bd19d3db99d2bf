"""The configuration of notifications."""

from __future__ import annotations

from email.utils import getaddresses, parseaddr
from typing import Annotated, Literal

from msgspec import Meta, field

from market.contracts import events
from market.kit import config as kit_config
from market.kit.auth.config import SignInConfig
from market.kit.config import Admission, Http, NonEmptyStr, Port, Seconds, Section
from market.kit.kafka_settings import check_options
from market.kit.mail_address import parse_mail_address


class Kafka(kit_config.Kafka, frozen=True, kw_only=True):
    """The consumer group, its topics, and how the service's own topics are created."""

    group: NonEmptyStr = "notifications"
    topic: NonEmptyStr = events.TOPIC
    dead_letter_topic: NonEmptyStr = events.DEAD_LETTER_TOPIC
    # The number of partitions of the dead letter topic and of the topic of deferred mails; 0 if the broker is the
    # embedded one.
    partitions: Annotated[int, Meta(ge=0, le=1000)] = 12
    # A member that sends no heartbeat for this long is removed from the group. By default, brokers reject a value below
    # 6 s.
    session_timeout_seconds: Annotated[float, Meta(ge=1, le=300)] = 10.0
    # The topic of the sent log; by default the group's name followed by .sent.
    sent_log_topic: NonEmptyStr | None = None
    # The topic of deferred mails; by default the group's name followed by .deferred.
    deferred_topic: NonEmptyStr | None = None
    # How many ids of mailed events are cached in memory, at about 100 bytes each. They are loaded by the first lookup
    # and dropped 10 minutes after the last lookup.
    sent_log_max_ids: Annotated[int, Meta(ge=1_000, le=100_000_000)] = 500_000
    # Events that are older than this are looked up in the sent log before they are mailed. Younger ones are not.
    sent_log_min_age_seconds: Annotated[float, Meta(ge=0)] = 60.0
    # A partition that has lost its committed offset is read again from the time of the group's first start. This
    # tolerance is subtracted from that time, in case the clocks of publishers and brokers differ.
    first_start_tolerance_seconds: Annotated[float, Meta(ge=0)] = 60.0
    # The process is not ready if an assigned partition with unread messages makes no progress for this long.
    stalled_after_seconds: Seconds = 60.0
    # If false, a process starts at the end of each partition that is assigned to it for the first time. Then events
    # published while the service was down, or while a partition moved to another process, are not mailed. This does not
    # apply if the topic did not exist when the process started: then all of its events are mailed.
    replay_missed: bool = True
    # When a partition is revoked, its messages in flight have this long to finish before its offset is committed.
    revoke_timeout_seconds: Seconds = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self)

    @property
    def is_embedded_broker(self) -> bool:
        """Whether the broker is the embedded one (librdkafka's mock cluster).

        The embedded broker creates topics automatically, and does not support topic ids.
        """
        return self.partitions == 0

    @property
    def sent_log_topic_name(self) -> str:
        """The topic of the sent log, as configured or by default."""
        return self.sent_log_topic or f"{self.group}.sent"

    @property
    def deferred_topic_name(self) -> str:
        """The topic of deferred mails, as configured or by default."""
        return self.deferred_topic or self.deferred_group

    @property
    def deferred_group(self) -> str:
        """The group that reads the topic of deferred mails."""
        return f"{self.group}.deferred"


class Memory(Section, frozen=True, kw_only=True):
    """Limits on the unsettled messages held in memory. At a limit, all partitions are paused."""

    max_messages: Annotated[int, Meta(ge=1, le=1_000_000)] = 2_000
    max_bytes: Annotated[int, Meta(ge=1_048_576)] = 64 * 1024 * 1024


class Smtp(Section, frozen=True, kw_only=True):
    """The mail server."""

    host: NonEmptyStr
    port: Port = 25
    tls: Literal["none", "starttls", "tls"] = "none"
    # A PEM file of certificates to trust in addition to those of the system. It is read again when it changes.
    ca_file: NonEmptyStr | None = None
    username: NonEmptyStr | None = None
    password: NonEmptyStr | None = None
    # The name in EHLO; by default the machine's host name.
    ehlo_hostname: (
        Annotated[
            str,
            Meta(pattern=r"^[A-Za-z0-9.:\[\]-]{1,255}$", extra={"rule": "must be a host name or an address literal"}),
        ]
        | None
    ) = None
    # How long to wait for a single reply from the mail server.
    timeout_seconds: Seconds = 30.0
    # How many mails are sent at the same time. Each needs a connection of its own.
    max_connections: Annotated[int, Meta(ge=1, le=100)] = 8
    # How many of these connections may be used for recipients in one domain, so that a slow domain does not occupy all
    # of them. By default three quarters, but at least one.
    max_connections_per_domain: Annotated[int, Meta(ge=1, le=100)] | None = None
    # How long an idle connection is kept.
    keepalive_seconds: Seconds = 20.0
    # After this many consecutive rejections for policy reasons (5.7.x) or because of a sending limit (5.4.5), the mail
    # server counts as unavailable, and consumption is paused.
    max_policy_rejections: Annotated[int, Meta(ge=1, le=1000)] = 5
    # The longest pause between two attempts to connect to an unavailable mail server.
    max_reconnect_seconds: Seconds = 10.0

    @property
    def domain_connections(self) -> int:
        """How many connections may be used for recipients in one domain."""
        return self.max_connections_per_domain or max(1, self.max_connections * 3 // 4)

    def __post_init__(self) -> None:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password must be set together")


class Retry(Section, frozen=True, kw_only=True):
    """Retries after the mail server has deferred a mail (4xx), and after internal errors.

    At first, the message waits in memory for its retries. The delay doubles from `initial_seconds` to `max_seconds`.
    After `in_memory_seconds`, or at once if the recipient's domain is throttled, the message is written to the topic of
    deferred mails, and waits there.
    """

    initial_seconds: Seconds = 1.0
    max_seconds: Seconds = 60.0
    in_memory_seconds: Annotated[float, Meta(ge=0)] = 30.0
    # How many messages may wait in memory for a retry at the same time.
    max_in_memory: Annotated[int, Meta(ge=0, le=100_000)] = 100
    # The delay before a deferred mail is attempted again is the time since its first deferral, but at least the minimum
    # and at most the maximum.
    min_deferral_seconds: Seconds = 5.0
    max_deferral_seconds: Seconds = 300.0
    # How many due mails per second each process takes from the topic of deferred mails, so that other mails are sent
    # even if many deferred mails become due at the same time.
    max_deferred_per_second: Annotated[int, Meta(ge=1, le=100_000)] = 200
    # A domain is throttled after this many different mails in a row were deferred, until it accepts a mail. While
    # it is throttled, each process makes at most `domain_attempts_per_second` delivery attempts to it. If a connection
    # breaks or times out while a mail is sent, this counts as a deferral.
    domain_threshold: Annotated[int, Meta(ge=1, le=1_000)] = 5
    domain_attempts_per_second: Annotated[float, Meta(ge=0.01, le=1_000)] = 5.0
    # An event becomes a dead letter when at least five attempts have failed, and this much time has passed since the
    # first of them. (If the mail was held back before any attempt was made, the time begins then.)
    give_up_seconds: Seconds = 86_400.0


# So that the header From fits in one line of a mail, in any alphabet and with the longest address.
_MAX_SENDER_NAME = 80


class Mail(Section, frozen=True, kw_only=True):
    """Settings of every mail."""

    # "Name <address>", or an address alone.
    sender: NonEmptyStr = field(name="from")

    def __post_init__(self) -> None:
        if (
            not self.sender.isprintable()
            or len(getaddresses([self.sender])) != 1
            or (address := parse_mail_address(self.address)) is None
            or address.needs_smtputf8
        ):
            raise ValueError("from must be an e-mail address, or a name and an address: Market <shop@example.com>")
        if len(self.name) > _MAX_SENDER_NAME:
            raise ValueError(f"the name in from must have at most {_MAX_SENDER_NAME} characters, got {len(self.name)}")

    @property
    def name(self) -> str:
        """The sender's display name, empty if there is none."""
        return parseaddr(self.sender)[0]

    @property
    def address(self) -> str:
        """The sender's address, without the display name, in ASCII."""
        address = parseaddr(self.sender)[1]
        return str(parse_mail_address(address) or address)


class OperatorHttp(Http, frozen=True, kw_only=True):
    """The address and the limits of the HTTP API. The limits are low: it has few callers, and they send no bodies."""

    max_body_bytes: Annotated[int, Meta(ge=1024)] = 16_384
    max_connections: Annotated[int, Meta(ge=1)] = 256
    max_in_flight: Annotated[int, Meta(ge=1)] = 64
    max_in_flight_per_caller: Annotated[int, Meta(ge=1)] = 32
    max_in_flight_body_bytes: Annotated[int, Meta(ge=1_048_576)] = 1_048_576
    max_receive_buffer_bytes: Annotated[int, Meta(ge=1_048_576)] = 1_048_576
    max_send_buffer_bytes: Annotated[int, Meta(ge=1_048_576)] = 4_194_304


class OneAtATime(Admission, frozen=True, kw_only=True):
    """Admits one request at a time. Up to 16 may wait. One caller may have up to 8, including the admitted one."""

    max_small_weight: Annotated[int, Meta(ge=1)] = 1
    max_waiting_weight: Annotated[int, Meta(ge=1)] = 16
    max_caller_weight: Annotated[int, Meta(ge=1)] = 8


class DeadLetters(Section, frozen=True, kw_only=True):
    """Reading and replaying dead letters."""

    # How many records of the dead letter topic are read to list the newest dead letters.
    max_records: Annotated[int, Meta(ge=100, le=1_000_000)] = 5_000
    # The time limit of one step of reading the topic.
    read_seconds: Seconds = 5.0
    # How long sending the mail of a dead letter may take.
    mail_seconds: Seconds = 30.0


class Config(SignInConfig, frozen=True, kw_only=True):
    """The service's configuration file."""

    # The API with which operators list, replay and drop dead letters.
    http: OperatorHttp
    # Requests to this API are admitted one at a time, because reading the dead letter topic takes memory.
    admission: OneAtATime = OneAtATime()
    kafka: Kafka
    smtp: Smtp
    mail: Mail
    dead_letters: DeadLetters = DeadLetters()
    retry: Retry = Retry()
    memory: Memory = Memory()
