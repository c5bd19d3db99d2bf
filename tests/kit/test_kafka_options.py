"""The options of librdkafka in a configuration file: which are refused, and the one line that says so."""

from __future__ import annotations

import socket
import time
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from market.kit.config import ConfigError, load
from tests.kit.configurations import ENVIRONMENT, ROOT, run
from tests.support.ports import free_port


@pytest.mark.parametrize("service", ["orders", "notifications"])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compression.codecc": "lz4"}, 'No such configuration property: "compression.codecc"'),
        ({"sasl.pasword": "sasl"}, 'No such configuration property: "sasl.pasword"'),
        ({"sasl.pasword": "hush hush"}, 'No such configuration property: "sasl.pasword"'),
        ({"socket.timeout.ms": "abc"}, 'Invalid value for configuration property "socket.timeout.ms"'),
        ({"socket.timeout.ms": "5"}, '"socket.timeout.ms" value 5 is outside allowed range 10..300000'),
        # Refused by admin clients and consumers only, by producers only, and by consumers only.
        ({"enable.idempotence": "maybe"}, 'Expected bool value for "enable.idempotence": true or false'),
        ({"max.in.flight": "10"}, "`max.in.flight` must be set <= 5 when `enable.idempotence` is true"),
        ({"max.poll.interval.ms": "30000"}, "`max.poll.interval.ms`must be >= `session.timeout.ms`"),
        # Of these, librdkafka shows the value, or a part of it.
        ({"compression.codec": "hush"}, 'Invalid value "***" for configuration property "compression.codec"'),
        ({"debug": "broker,hush"}, 'Invalid value "***" for configuration property "debug"'),
        ({"security.protocol": "sasl_ssl", "sasl.mechanism": "hush"}, "Unsupported SASL mechanism: ***"),
        ({"security.protocol": "ssl", "ssl.key.pem": "hush"}, "ssl.key.pem failed: not in PEM format?"),
        ({"security.protocol": "ssl", "ssl.ca.location": "/hush"}, "ssl.ca.location failed"),
        # Options of the Python client.
        ({"error_cb": "hush"}, "must be options of librdkafka, and error_cb is not one"),
        ({"logger": "hush"}, "must be options of librdkafka, and logger is not one"),
    ],
)
def test_an_option_that_librdkafka_refuses_is_reported_without_its_value(
    tmp_path: Path, service: str, options: dict[str, str], reason: str
) -> None:
    file = _with_options(tmp_path, service, options)
    with pytest.raises(ConfigError) as e:
        load(file, import_module(f"market.{service}.config").Config, ENVIRONMENT)
    line = str(e.value)
    assert line.startswith(f"{file}: kafka: ")
    assert "kafka.options" in line
    assert reason in line
    assert line.isprintable()
    assert "hush" not in line.removeprefix(str(file))


@pytest.mark.parametrize(
    "options",
    [
        {"metadata.broker.list": "127.0.0.1:{port}"},
        {
            "security.protocol": "sasl_plaintext",
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": "orders",
            "sasl.oauthbearer.client.secret": "hush",
            "sasl.oauthbearer.token.endpoint.url": "http://127.0.0.1:{port}/token",
        },
    ],
)
def test_checking_the_options_of_librdkafka_connects_to_nothing(tmp_path: Path, options: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = str(server.getsockname()[1])
        options = {name: value.replace("{port}", port) for name, value in options.items()}
        file = _with_options(tmp_path, "orders", options)
        assert load(file, import_module("market.orders.config").Config, ENVIRONMENT).kafka.options == options
        time.sleep(0.2)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("service", ["orders", "notifications"])
def test_options_that_librdkafka_accepts_are_kept(tmp_path: Path, service: str) -> None:
    options = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "u",
        "sasl.password": "p",
        # Valid for some clients of a service, so this is not the place to refuse them.
        "linger.ms": "30000",
        "receive.message.max.bytes": "20000000",
        "message.max.bytes": "6000000",
    }
    file = _with_options(tmp_path, service, options)
    assert load(file, import_module(f"market.{service}.config").Config, ENVIRONMENT).kafka.options == options


def _with_options(directory: Path, service: str, options: dict[str, str]) -> Path:
    tree = yaml.safe_load((ROOT / "config" / f"{service}.yaml").read_text())
    tree["kafka"]["options"] = options
    file = directory / "c.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize(
    "command",
    [
        ("orders",),
        ("orders", "migrate"),
        ("orders", "reconcile", "--topic"),
        ("notifications",),
        ("notifications", "dead-letters", "list"),
        ("notifications", "dead-letters", "replay", "--all"),
    ],
    ids=" ".join,
)
def test_no_process_starts_with_an_option_that_librdkafka_refuses(tmp_path: Path, command: tuple[str, ...]) -> None:
    service, *arguments = command
    file = _with_options(tmp_path, service, {"compression.codecc": "lz4"})
    ended = run(service, *arguments, file=file)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"market.{service}: {file}: kafka: librdkafka refuses kafka.options: No such configuration property: "
        '"compression.codecc"; librdkafka\'s CONFIGURATION.md lists the options and their values\n'
    )


# More than kafka.delivery_seconds, and more than the delivery timeout of notifications.
@pytest.mark.parametrize(
    ("command", "linger_ms"), [(("orders", "reconcile"), "19000"), (("notifications",), "15000")], ids=str
)
def test_a_setting_that_is_invalid_only_with_another_one_is_reported_in_one_line(
    tmp_path: Path, command: tuple[str, ...], linger_ms: str
) -> None:
    service, *arguments = command
    file = _with_options(tmp_path, service, {"linger.ms": linger_ms})
    if service == "orders":
        file.write_text(file.read_text().replace("kafka:\n", "kafka:\n  delivery_seconds: 18\n"))
    ended = run(service, *arguments, file=file, MARKET_ADMIN_PORT=str(free_port()))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"market.{service}: {file}: kafka: librdkafka refuses the settings, kafka.options included: Failed to create "
        "producer: `message.timeout.ms` must be greater than `linger.ms`; librdkafka's CONFIGURATION.md lists the "
        "options and their values\n"
    )
