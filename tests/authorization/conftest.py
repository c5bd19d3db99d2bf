"""The issuer and a shop that requires its tokens, for all tests of this package."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.authorization.keycloak import KeycloakIssuer
from tests.authorization.leaks import assert_nothing_leaked
from tests.authorization.shop import Shop, running_shop
from tests.support.issuer import ON_KEYCLOAK, Issuer


@pytest.fixture(scope="package")
async def issuer(server_directory: Path) -> AsyncIterator[Issuer]:
    issuer = KeycloakIssuer(server_directory / "keycloak", server_directory / "logs") if ON_KEYCLOAK else Issuer()
    async with issuer.serving():
        yield issuer


@pytest.fixture(scope="package")
async def shop(
    issuer: Issuer,
    postgres: Any,
    redis_server: Any,
    mongodb: Any,
    kafka: Any,
    mail: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Shop]:
    directory: Path = tmp_path_factory.mktemp("signed-in-shop")
    async with running_shop(
        issuer, postgres, redis_server, mongodb, kafka, mail, directory, **issuer.configuration
    ) as shop:
        yield shop
        # In the logs of the whole run.
        await assert_nothing_leaked(shop)
