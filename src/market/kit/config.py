"""Configuration: one YAML file per service, parsed once into a frozen struct.

    config = load(path, Config, os.environ)

`${NAME}` in a value is replaced by the environment variable NAME. A mistake raises a ConfigError. Its text is one line
with the file, the key and the reason.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta, Struct

from market.kit.host_and_port import check_url, parse_host_and_port
from market.kit.validation import explain

T = TypeVar("T")

Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
NonEmptyStr = Annotated[str, Meta(min_length=1)]
ForwardedHeader = Literal["x-forwarded-for", "forwarded"]


class ConfigError(Exception):
    """The configuration is invalid. The text is one line with key and reason; that of `load` begins with the file."""


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base class of every part of a configuration: immutable, and unknown keys are errors."""


class Listen(Section, frozen=True, kw_only=True):
    """An address to listen on."""

    host: NonEmptyStr = "127.0.0.1"
    port: Port


class HttpLimits(Section, frozen=True, kw_only=True):
    """The timeouts and size limits of one HTTP server (docs/operations.md, "Limits of the public edge")."""

    max_body_bytes: Annotated[int, Meta(ge=1024)] = 1_048_576
    # The request line and all headers together.
    max_header_bytes: Annotated[int, Meta(ge=1024, le=1_048_576)] = 32_768
    max_headers: Annotated[int, Meta(ge=10, le=10_000)] = 100
    # The maximum number of connections. At the limit, a new connection replaces the one that has waited longest for its
    # client: it is idle, or its request is incomplete.
    max_connections: Annotated[int, Meta(ge=1)] = 4096
    # From the first byte of a request to the end of its headers.
    header_timeout_seconds: Seconds = 20.0
    # From the end of the headers to the end of the body.
    body_timeout_seconds: Seconds = 60.0
    # How long a connection may be idle between two requests, or before the first.
    keep_alive_seconds: Seconds = 75.0
    # A slow client has send_timeout_seconds + unsent bytes / min_send_bytes_per_second to read a response.
    send_timeout_seconds: Seconds = 30.0
    min_send_bytes_per_second: Annotated[int, Meta(ge=1)] = 16_384
    # The total size, over all connections, of the requests that are incomplete or pipelined, and of the unsent
    # responses.
    max_receive_buffer_bytes: Annotated[int, Meta(ge=1_048_576)] = 16_777_216
    max_send_buffer_bytes: Annotated[int, Meta(ge=1_048_576)] = 33_554_432


class Admission(Section, frozen=True, kw_only=True):
    """How many requests are handled at the same time, by weight (docs/operations.md, "Admission").

    The service determines the weight of a request. Small and large requests have separate limits and queues, so small
    ones never wait for large ones.
    """

    # Requests up to this weight are small.
    small_weight: Annotated[int, Meta(ge=1)] = 100
    # The maximum total weight of the small requests that are handled at the same time, and of the large ones. A request
    # whose own weight exceeds the limit is admitted when no other request of its class (small or large) is being
    # handled.
    max_small_weight: Annotated[int, Meta(ge=1)] = 10_000
    max_large_weight: Annotated[int, Meta(ge=1)] = 2_000
    # The maximum total weight of the requests that wait, in each of the two queues.
    max_waiting_weight: Annotated[int, Meta(ge=1)] = 400_000
    # The maximum total weight of one caller's requests that wait or are being handled, unless there is only one. It
    # applies to small and to large requests separately.
    max_caller_weight: Annotated[int, Meta(ge=1)] = 100_000
    # A request that has waited for this long gets 503.
    max_wait_seconds: Seconds = 6.0


class Compression(Section, frozen=True, kw_only=True):
    """Compression of responses, if the client accepts it. Disable it if a proxy compresses the responses."""

    enabled: bool = True
    # A smaller body is not compressed, because it fits into one packet.
    min_bytes: Annotated[int, Meta(ge=1)] = 1400


_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Http(HttpLimits, frozen=True, kw_only=True):
    """The address and the limits of a service's HTTP API."""

    host: NonEmptyStr = "127.0.0.1"
    port: Port
    # The maximum number of requests in flight in one process; above that, requests get 503 immediately. A request is in
    # flight once it has been received completely.
    max_in_flight: Annotated[int, Meta(ge=1)] = 1024
    # The maximum number of requests in flight of one caller; above that, its requests get 429.
    max_in_flight_per_caller: Annotated[int, Meta(ge=1)] = 512
    # The maximum average rate of one caller's requests to one process, and the maximum burst. Above these limits, the
    # caller gets 429. By default, the rate is 1000 requests per second if callers sign in, and unlimited otherwise.
    # Not counted are preflights, requests that are refused earlier (for example because of an unknown path or method,
    # or another limit), and requests without sign-in from the address of a trusted proxy.
    max_requests_per_second_per_caller: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    max_burst_per_caller: Annotated[int, Meta(ge=1, le=1_000_000)] = 2000
    # The maximum total size of the bodies of requests in flight; above that, requests with a body get 503 immediately.
    max_in_flight_body_bytes: Annotated[int, Meta(ge=1_048_576)] = 33_554_432
    # The minimum for the client's X-Deadline-Ms. With less time, work would be started and then aborted. Smaller values
    # are raised to the minimum, except 0: then the deadline has already passed, and no work is started.
    min_deadline_ms: Annotated[int, Meta(ge=0, le=10_000)] = 100
    # Networks of the proxies that connect to this process, such as 10.0.0.0/8. `forwarded_header` is ignored if another
    # client sends it.
    trusted_proxies: tuple[NonEmptyStr, ...] = ()
    # The header in which a proxy sends the client's address. The proxy must overwrite the header or append to it.
    forwarded_header: ForwardedHeader = "x-forwarded-for"
    # The names that the header `Host` may contain besides localhost and IP addresses, in lower case and without a port.
    # The header is checked only if nobody signs in and `host` is a loopback address.
    allowed_hosts: tuple[NonEmptyStr, ...] = ()
    # The origins whose pages may call the API from a browser, such as https://www.example.com. "*" allows every origin,
    # but without credentials.
    cors_origins: tuple[NonEmptyStr, ...] = ()
    compression: Compression = Compression()

    def __post_init__(self) -> None:
        _ = self.trusted_networks
        for origin in self.cors_origins:
            # Origins are compared exactly. Browsers send them in lower case, without a path or a default port.
            scheme = origin.partition(":")[0]
            if origin != "*" and (not _ORIGIN.fullmatch(origin) or origin.endswith(_DEFAULT_PORTS[scheme])):
                raise ValueError(
                    "cors_origins must be * or origins such as https://www.example.com, in lower case, without a path "
                    f"or a default port; got {origin}"
                )

    @property
    def trusted_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """Return `trusted_proxies` as networks. Raises ValueError."""
        try:
            return tuple(ipaddress.ip_network(text) for text in self.trusted_proxies)
        except ValueError as e:
            raise ValueError(f"trusted_proxies must be networks such as 10.0.0.0/8: {e}") from None


class Log(Section, frozen=True, kw_only=True):
    """The level and the format of the log, which is written to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Tracing(Section, frozen=True, kw_only=True):
    """OpenTelemetry. Without an endpoint, no spans are created. `traceparent` is always propagated."""

    otlp_endpoint: str | None = None
    sample_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.01
    max_traces_per_second: Annotated[int, Meta(ge=0)] = 100


class Shutdown(Section, frozen=True, kw_only=True):
    """How long the process takes to shut down after SIGTERM."""

    # How long the process reports that it is not ready, but still accepts requests. A gRPC server stops earlier if a
    # store stays unavailable.
    drain_seconds: Annotated[float, Meta(ge=0, le=300)] = 5.0
    # How long the remaining requests in flight may take after that.
    grace_seconds: Seconds = 15.0


class Faults(Section, frozen=True, kw_only=True):
    """Failure points and clock skew, for tests only: rejected unless `testing` is true.

    directory: where a test creates the files that arm failure points (market.kit.faults).
    clock_offset_seconds: added to the process's clock.
    """

    directory: str | None = None
    clock_offset_seconds: float = 0.0


class ServiceConfig(Section, frozen=True, kw_only=True):
    """Base class of every service's configuration."""

    admin: Listen
    log: Log = Log()
    tracing: Tracing = Tracing()
    shutdown: Shutdown = Shutdown()
    testing: bool = False
    faults: Faults | None = None


class Tls(Section, frozen=True, kw_only=True):
    """TLS to a server. The modes are those of libpq's `sslmode`. A file that changes is read again."""

    # disable: not encrypted.
    # prefer: encrypted if the server supports it.
    # require: encrypted, but the server's certificate is not verified.
    # verify-ca: the certificate must be signed by a CA in `ca_file`.
    # verify-full: like verify-ca, and the certificate must be for the server's host name.
    mode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    # CA certificates to trust (PEM); the system's trust store by default.
    ca_file: NonEmptyStr | None = None
    # The client's certificate and its key (PEM), if the server requests one.
    cert_file: NonEmptyStr | None = None
    key_file: NonEmptyStr | None = None

    def __post_init__(self) -> None:
        if self.ca_file is not None and not self.verifies:
            raise ValueError(f"ca_file requires the mode verify-ca or verify-full, got {self.mode}")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file must be set together")
        if self.cert_file is not None and self.mode in ("disable", "prefer"):
            raise ValueError(f"cert_file requires the mode require, verify-ca or verify-full, got {self.mode}")

    @property
    def verifies(self) -> bool:
        return self.mode in ("verify-ca", "verify-full")


class Migrations(Section, frozen=True, kw_only=True):
    """The timeouts of `migrate`."""

    # How long `migrate` waits for another process that applies migrations.
    lock_timeout_seconds: Seconds = 60.0
    # The timeout for applying one migration.
    timeout_seconds: Seconds = 900.0


class Postgres(Section, frozen=True, kw_only=True):
    """A PostgreSQL database, and the pool of connections to it."""

    # One host, or several separated by commas. The one that accepts writes is used. A host may have a port of its own,
    # as in "db-0.example.com,db-1.example.com:5433".
    host: NonEmptyStr
    port: Port = 5432
    database: NonEmptyStr
    user: NonEmptyStr
    password: str
    tls: Tls = Tls()
    pool_size: Annotated[int, Meta(ge=1, le=200)] = 16
    # The timeout of each statement.
    timeout_seconds: Seconds = 2.5
    # The timeout for establishing a connection. With several hosts, each gets an equal share of it.
    connect_timeout_seconds: Seconds = 2.0
    # Connections are replaced at this age, plus or minus a tenth, so that a change in DNS takes effect.
    max_connection_age_seconds: Seconds = 600.0
    migrations: Migrations = Migrations()

    def __post_init__(self) -> None:
        _ = self.addresses

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The host and port of each server."""
        return [parse_host_and_port(text.strip(), self.port) for text in self.host.split(",")]


class Kafka(Section, frozen=True, kw_only=True):
    """The brokers; `options` are additional librdkafka settings, such as security.protocol and sasl.username.

    The services that use Kafka have a section of their own, which also checks the options: not all have librdkafka.
    """

    bootstrap_servers: NonEmptyStr
    options: dict[str, str] = msgspec.field(default_factory=dict)
    # The replication factor and min.insync.replicas of the topics that the service creates.
    replication: Annotated[int, Meta(ge=1, le=9)] = 1
    min_insync: Annotated[int, Meta(ge=1, le=9)] = 1

    def __post_init__(self) -> None:
        if self.min_insync > self.replication:
            raise ValueError(
                f"min_insync must be at most replication, which is {self.replication}, got {self.min_insync}"
            )


class HttpUpstream(Section, frozen=True, kw_only=True):
    """An upstream that is called over HTTP. `connections` is the maximum per process."""

    url: NonEmptyStr
    timeout_seconds: Seconds = 3.0
    connections: Annotated[int, Meta(ge=1)] = 128

    def __post_init__(self) -> None:
        check_url(self.url, "http", "https")


class MutualTls(Section, frozen=True, kw_only=True):
    """TLS in which both sides present a certificate. A file that changes is read again.

    ca_file: CA certificates (PEM), one of which must have signed the other side's certificate
    cert_file, key_file: this side's certificate and its key (PEM)
    """

    ca_file: NonEmptyStr
    cert_file: NonEmptyStr
    key_file: NonEmptyStr


class GrpcUpstream(Section, frozen=True, kw_only=True):
    """An upstream that is called over gRPC; `target` is a gRPC target, such as dns:///host:port.

    tls: the upstream's certificate must be for the host name of `target`. None: calls are not encrypted
    """

    target: NonEmptyStr
    timeout_seconds: Seconds = 3.0
    tls: MutualTls | None = None


_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load(path: str | Path, config_type: type[T], environ: Mapping[str, str]) -> T:
    """Return the configuration in the file, each `${NAME}` replaced by its value in `environ`. Raises ConfigError."""
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    try:
        tree = yaml.load(text, _Loader)  # noqa: S506  A SafeLoader that rejects duplicate keys.
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(e, "problem", None) or getattr(e, "reason", None) or "unreadable"
        raise ConfigError(f"{path}: is not valid YAML: {line}{_one_line(str(reason))}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a mapping of keys")
    tree = _substitute(tree, "", path, environ)
    try:
        # strict=False, because environment variables are text, even where a number is expected.
        config = msgspec.convert(tree, config_type, strict=False)
    except msgspec.ValidationError as e:
        key, reason = explain(e, config_type, tree)
        raise ConfigError(_one_line(f"{path}: {key or 'top level'}: {reason}")) from None
    if isinstance(config, ServiceConfig) and config.faults is not None and not config.testing:
        raise ConfigError(f"{path}: faults: only allowed if testing is true")
    return config


class _Loader(yaml.SafeLoader):
    """A SafeLoader that rejects duplicate keys, of which PyYAML would silently keep only the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"duplicate key {key_node.value}", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _substitute(node: Any, key: str, path: str | Path, environ: Mapping[str, str]) -> Any:
    """Return the tree with its `${NAME}` replaced by environment variables. Raises ConfigError."""
    if isinstance(node, dict):
        for k in node:
            if not isinstance(k, str):
                # YAML reads `on:` as true and `1:` as a number.
                raise ConfigError(f"{path}: {key or 'top level'}: the key {k!r} must be a string; put it in quotes")
        return {k: _substitute(v, f"{key}.{k}" if key else str(k), path, environ) for k, v in node.items()}
    if isinstance(node, list):
        return [_substitute(v, f"{key}[{i}]", path, environ) for i, v in enumerate(node)]
    if not isinstance(node, str):
        return node

    def replacement(match: re.Match[str]) -> str:
        try:
            return environ[match[1]]
        except KeyError:
            raise ConfigError(f"{path}: {key}: environment variable {match[1]} is not set") from None

    return _REFERENCE.sub(replacement, node)
