"""The configuration of sign-in: what is refused at start."""

from __future__ import annotations

from pathlib import Path

import pytest

from market.kit.auth.config import Auth, ServiceIdentity, SignInConfig
from market.kit.auth.identity import Role
from market.kit.config import ConfigError, Http, Listen, load


class Config(SignInConfig, frozen=True, kw_only=True):
    http: Http | None = None
    grpc: Listen | None = None
    service_identity: ServiceIdentity | None = None


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(f"admin: {{port: 9090}}\n{text}")
    return load(path, Config, {})


def test_by_default_nobody_signs_in(tmp_path: Path) -> None:
    config = read(tmp_path, "http: {port: 80}")
    assert config.auth == Auth()
    assert not config.auth.is_required
    assert config.auth.roles == {
        "buyer": Role.BUYER,
        "merchant": Role.MERCHANT,
        "operator": Role.OPERATOR,
        "service": Role.SERVICE,
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_the_mode_open_is_for_this_machine(tmp_path: Path, host: str) -> None:
    read(tmp_path, f'http: {{host: "{host}", port: 80}}')


@pytest.mark.parametrize(
    ("listener", "host"), [("http", "0.0.0.0"), ("grpc", "::"), ("http", "10.0.0.1"), ("grpc", "shop")]
)
def test_the_mode_open_on_a_network_must_be_on_purpose(tmp_path: Path, listener: str, host: str) -> None:
    text = f'{listener}: {{host: "{host}", port: 80}}'
    with pytest.raises(
        ConfigError,
        match=f"{listener}.host is {host}, which other machines can reach, and without sign-in anybody could change "
        "everything: set auth.mode",
    ):
        read(tmp_path, text)
    read(tmp_path, f"{text}\nauth: {{mode: open, open_on_purpose: true}}")
    read(tmp_path, f'{text}\nauth: {{mode: required, issuer: "https://login.example.com"}}')


@pytest.mark.parametrize(
    ("auth", "reason"),
    [
        ("{mode: required}", "auth: issuer must be set if mode is required"),
        ("{mode: requird}", "auth.mode: must be one of open, required"),
        (
            '{issuer: "http://login.example.com"}',
            "auth: issuer must be an https URL; http is only allowed on this machine",
        ),
        ('{issuer: "login.example.com"}', "auth: issuer must be a URL such as https://host:port"),
        (
            '{issuer: "https://user:secret@login.example.com"}',
            "auth: issuer must be a URL without user, fragment and spaces",
        ),
        ('{keys_url: "http://login.example.com/keys"}', "auth: keys_url must be an https URL"),
        ("{algorithms: [HS256]}", "auth.algorithms"),
        ("{algorithms: [none]}", "auth.algorithms"),
        ("{algorithms: []}", "auth.algorithms: must have at least 1 item"),
        ("{leeway_seconds: 121}", "auth.leeway_seconds: must be between 0 and 120, got 121"),
        ("{roles: {Verkauf: seller}}", "auth.roles"),
    ],
)
def test_what_cannot_work_is_an_error_that_names_the_key(tmp_path: Path, auth: str, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, f"http: {{port: 80}}\nauth: {auth}")
    assert reason in str(error.value)
    assert "secret" not in str(error.value)


def test_http_issuers_are_for_this_machine_or_on_purpose(tmp_path: Path) -> None:
    for auth in ('{issuer: "http://127.0.0.1:8080/realms/a"}', '{issuer: "http://issuer:8080", insecure_issuer: true}'):
        read(tmp_path, f"http: {{port: 80}}\nauth: {auth}")


def test_a_client_secret_is_sent_to_a_known_endpoint_over_tls(tmp_path: Path) -> None:
    identity = "service_identity: {client_id: orders, client_secret: secret"
    with pytest.raises(ConfigError, match=r"service_identity: client_id needs token_url, or auth\.issuer"):
        read(tmp_path, f"{identity}}}")
    with pytest.raises(ConfigError, match=r"service_identity\.token_url must be an https URL"):
        read(tmp_path, f'{identity}, token_url: "http://login.example.com/token"}}')
    read(tmp_path, f'{identity}, token_url: "http://login.example.com/token"}}\nauth: {{insecure_issuer: true}}')
    read(tmp_path, f'{identity}, token_url: "https://login.example.com/token"}}')
    read(tmp_path, f'{identity}}}\nauth: {{issuer: "https://login.example.com"}}')
