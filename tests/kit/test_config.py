"""Configuration files: what is loaded, and the one line with file, key and reason for a mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from market.kit.config import ConfigError, Http, Postgres, ServiceConfig, load
from tests.kit.configurations import ENVIRONMENT, ROOT, run
from tests.support.ports import free_port

SERVICES = ("products", "orders", "inventory", "notifications", "graphql", "storefront")


class Example(ServiceConfig, frozen=True, kw_only=True):
    postgres: Postgres
    http: Http | None = None
    tags: dict[str, str] = {}  # noqa: RUF012


GOOD = """
admin: {port: 9090}
postgres: {host: "${HOST}", database: d, user: u, password: "${SECRET}", port: "${PORT}"}
"""
SET = {"HOST": "db", "SECRET": "a: #b${HOST}", "PORT": "5433"}


def _rejected(directory: Path, text: str, environ: dict[str, str] | None = None) -> str:
    file = directory / "c.yaml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as e:
        load(file, Example, SET if environ is None else environ)
    line = str(e.value)
    assert line.startswith(f"{file}: ")
    assert line.isprintable()
    return line.removeprefix(f"{file}: ")


def test_a_file_is_loaded_into_a_frozen_struct_with_secrets_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    config = load(tmp_path / "c.yaml", Example, SET)
    # Inserted verbatim: neither YAML nor another reference inside it is evaluated.
    assert (config.postgres.password, config.postgres.port, config.postgres.host) == ("a: #b${HOST}", 5433, "db")
    with pytest.raises(AttributeError):
        config.postgres.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("db", [("db", 5432)]),
        ("db-0:5433, db-1", [("db-0", 5433), ("db-1", 5432)]),
        ("::1", [("::1", 5432)]),
        ("fe80::1%eth0,b\u00fccher.example", [("fe80::1%eth0", 5432), ("b\u00fccher.example", 5432)]),
        ("[::1]:5433,[fd00::2],/run/postgresql", [("::1", 5433), ("fd00::2", 5432), ("/run/postgresql", 5432)]),
    ],
)
def test_postgres_may_have_several_hosts(host: str, addresses: list[tuple[str, int]]) -> None:
    assert Postgres(host=host, database="d", user="u", password="").addresses == addresses


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("9090", "90900"), "admin.port: must be between 1 and 65535, got 90900"),
        (("9090", "lots"), "admin.port: must be a whole number, got a string"),
        (("9090", "[1]"), "admin.port: must be a whole number, got a list"),
        (("9090", "null"), "admin.port: must be a whole number, got null"),
        (("{port: 9090}", "{port: 9090, prot: 1}"), "admin.prot: is unknown"),
        (("{port: 9090}", "{}"), "admin.port: is missing"),
        (("admin: {port: 9090}", ""), "admin: is missing"),
        (("admin: {port: 9090}", "admin: {port: 9090}\nadmim: 1"), "admim: is unknown"),
        (
            ("admin: {port: 9090}", "admin: {port: 9090}\nadmin: {port: 9091}"),
            "is not valid YAML: line 3: duplicate key admin",
        ),
        (
            ("admin: {port: 9090}", "admin: {port: 9090}\non: 1"),
            "top level: the key True must be a string; put it in quotes",
        ),
        (("database: d", 'database: ""'), "postgres.database: must have at least 1 character, got 0"),
        (
            ("admin: {port: 9090}", "admin: {port: 9090}\nshutdown: {drain_seconds: .nan}"),
            "shutdown.drain_seconds: must be between 0 and 300, got nan",
        ),
        (
            ("admin: {port: 9090}", "admin: {port: 9090}\nfaults: {directory: /tmp}"),
            "faults: only allowed if testing is true",
        ),
        (
            ("admin: {port: 9090}", "admin: {port: 9090}\ntags: {a: 1}"),
            "tags[...]: must be a string, got a whole number",
        ),
        (
            ("${HOST}", "a,,b"),
            "postgres: host must contain host names or addresses, got ''",
        ),
        *(
            (("${HOST}", host), f"postgres: host must contain host names or addresses, got '{host}'")
            for host in ("::1]", "[::1", "db 1", "user@db", "a:b:c", "db/5433", "[db]:5433", "[127.0.0.1]", "[/run]")
        ),
        (("${HOST}", "a,b:0"), "postgres: host: the port of b must be between 1 and 65535, got '0'"),
        (
            ("${HOST}", "a,b:0000199999"),
            "postgres: host: the port of b must be between 1 and 65535, got '0000199999'",
        ),
        (
            ("database: d", "database: d, tls: {mode: verified}"),
            "postgres.tls.mode: must be one of disable, prefer, require, verify-ca, verify-full, got",
        ),
        (
            ("database: d", "database: d, tls: {mode: require, ca_file: /ca.pem}"),
            "postgres.tls: ca_file requires the mode verify-ca or verify-full, got require",
        ),
        (
            ("database: d", "database: d, tls: {mode: require, key_file: /key.pem}"),
            "postgres.tls: cert_file and key_file must be set together",
        ),
        (
            ("database: d", "database: d, tls: {cert_file: /cert.pem, key_file: /key.pem}"),
            "postgres.tls: cert_file requires the mode require, verify-ca or verify-full, got prefer",
        ),
        (
            ("admin: {port: 9090}", "admin: {port: 9090}\nhttp: {port: 80, trusted_proxies: [10.0.0.0/8, 10.0.0.1/8]}"),
            "http: trusted_proxies must be networks such as 10.0.0.0/8: 10.0.0.1/8 has host bits set",
        ),
        (("${HOST}", "${NOT_SET}"), "postgres.host: environment variable NOT_SET is not set"),
        (("admin: {port: 9090}", "admin: {port: 9090"), "is not valid YAML: line 3: "),
        (("admin: {port: 9090}", "a: b: c"), "is not valid YAML: line 2: mapping values are not allowed here"),
        (
            ("admin: {port: 9090}", "admin: !!python/object/apply:os.getcwd []"),
            "is not valid YAML: line 2: could not determine a constructor",
        ),
        (("admin: {port: 9090}", "admin: \x00"), "is not valid YAML: special characters are not allowed"),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_its_key(tmp_path: Path, change: tuple[str, str], line: str) -> None:
    assert change[0] in GOOD
    assert _rejected(tmp_path, GOOD.replace(*change)).startswith(line)


def test_a_file_that_is_not_a_configuration_is_rejected(tmp_path: Path) -> None:
    assert _rejected(tmp_path, "") == "must be a mapping of keys"
    assert _rejected(tmp_path, "- a") == "must be a mapping of keys"
    assert _rejected(tmp_path, "a: 1\n---\nb: 2").startswith("is not valid YAML: line 2: but found another document")
    assert _rejected(tmp_path, "[" * 5_000).startswith("is not valid YAML")
    assert _rejected(tmp_path, "\udcff") == "cannot be read: not UTF-8"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "absent.yaml", Example, {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, Example, {})


@given(st.text(max_size=60) | st.text(alphabet="{}[]:,-&*!|>'\"%@`#? \n\tab1$", max_size=60))
def test_any_text_is_loaded_or_rejected_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    _rejected(tmp_path_factory.getbasetemp(), text)


@pytest.mark.parametrize("service", SERVICES)
def test_the_configuration_of_the_local_stack_is_valid(service: str) -> None:
    config = load(ROOT / "config" / f"{service}.yaml", import_module(f"market.{service}.config").Config, ENVIRONMENT)
    assert config.admin.port == 21001


@pytest.mark.parametrize(
    ("file", "proxy"),
    [
        ("config/products.yaml", "127.0.0.1"),
        ("config/orders.yaml", "127.0.0.1"),
        *(
            (f"deploy/base/services/config/{name}-service.yaml", "10.244.1.7")
            for name in ("product", "order", "graphql")
        ),
        *((f"deploy/overlays/production/config/{name}-service.yaml", "10.244.1.7") for name in ("product", "order")),
    ],
)
def test_the_gateway_and_the_ingress_are_trusted_proxies(file: str, proxy: str) -> None:
    http = yaml.safe_load((ROOT / file).read_text())["http"]
    networks = msgspec.convert({**http, "port": 1}, Http).trusted_networks
    assert any(ip_address(proxy) in network for network in networks)
    assert not any(ip_address("203.0.113.7") in network for network in networks)


@pytest.mark.parametrize(
    ("service", "good", "bad", "key"),
    [
        ("graphql", "http://127.0.0.1:${MARKET_ORDERS_PORT}", "127.0.0.1:8082", "orders: url"),
        ("graphql", "http://127.0.0.1:${MARKET_ORDERS_PORT}", "ftp://shop", "orders: url"),
        ("orders", "http://127.0.0.1:${MARKET_PRODUCTS_PORT}", "http://shop:99999", "products: url"),
        ("orders", "mongodb://127.0.0.1:${MARKET_MONGODB_PORT}", "shop:hush@127.0.0.1:27017", "mongodb: uri"),
        ("orders", "mongodb://127.0.0.1:${MARKET_MONGODB_PORT}", "mongodb://shop:hush@127.0.0.1:99999", "mongodb: uri"),
        ("orders", "directConnection=true", "directConection=true", "mongodb: uri"),
        ("orders", "database: orders", "database: a.b", "mongodb.database: must be"),
        ("products", "redis://127.0.0.1:${MARKET_REDIS_PORT}/0", "shop:hush@127.0.0.1", "redis: url"),
        ("products", "redis://127.0.0.1:${MARKET_REDIS_PORT}/0", "redis://:hush@:6379", "redis: url"),
    ],
)
def test_an_invalid_url_is_reported_without_its_password(
    tmp_path: Path, service: str, good: str, bad: str, key: str
) -> None:
    text = (ROOT / "config" / f"{service}.yaml").read_text()
    assert good in text
    (tmp_path / "c.yaml").write_text(text.replace(good, bad))
    with pytest.raises(ConfigError) as e:
        load(tmp_path / "c.yaml", import_module(f"market.{service}.config").Config, ENVIRONMENT)
    line = str(e.value)
    assert line.startswith(f"{tmp_path / 'c.yaml'}: {key} ")
    assert line.isprintable()
    assert "hush" not in line


@pytest.mark.parametrize("service", ["orders", "notifications"])
def test_a_topic_cannot_need_more_replicas_in_sync_than_it_has(tmp_path: Path, service: str) -> None:
    text = (ROOT / "config" / f"{service}.yaml").read_text()
    config_type = import_module(f"market.{service}.config").Config
    file = tmp_path / "c.yaml"
    file.write_text(text.replace("\nkafka:\n", "\nkafka:\n  replication: 2\n  min_insync: 2\n"))
    assert load(file, config_type, ENVIRONMENT).kafka.min_insync == 2
    file.write_text(text.replace("\nkafka:\n", "\nkafka:\n  replication: 2\n  min_insync: 3\n"))
    with pytest.raises(ConfigError) as e:
        load(file, config_type, ENVIRONMENT)
    assert str(e.value) == f"{file}: kafka: min_insync must be at most replication, which is 2, got 3"


def test_a_file_of_secrets_that_cannot_be_read_is_reported_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text((ROOT / "config" / "storefront.yaml").read_text())
    secrets = tmp_path / "secrets"
    ended = run("storefront", file=file, MARKET_COOKIE_SECRETS_FILE=str(secrets), MARKET_ADMIN_PORT=str(free_port()))
    assert (ended.returncode, ended.stdout) == (2, "")
    expected = f"cookies.secrets_file: {secrets} cannot be read: FileNotFoundError"
    assert ended.stderr == f"market.storefront: {file}: {expected}\n"


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_with_an_invalid_configuration_exits_with_one_line(tmp_path: Path, service: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text((ROOT / "config" / f"{service}.yaml").read_text() + "\nadmim: 1\n")
    ended = run(service, file=file)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"market.{service}: {file}: admim: is unknown\n"


def test_a_missing_config_path_is_reported() -> None:
    environ = {k: v for k, v in os.environ.items() if k != "CONFIG_PATH"}
    ended = subprocess.run(
        [sys.executable, "-m", "market.notifications"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert (
        ended.stderr == "market.notifications: CONFIG_PATH is not set; it must be the path of the configuration file\n"
    )
