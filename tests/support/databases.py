"""Databases of one's own on a running PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg

from market.kit.config import Postgres
from tests.support.servers import PostgresHandle
from tests.support.waiting import PATIENCE


@asynccontextmanager
async def superuser(server: PostgresHandle, database: str = "postgres") -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection of the superuser."""
    conn = await asyncpg.connect(
        host=server.host, port=server.port, database=database, user="postgres", password=server.password
    )
    try:
        yield conn
    finally:
        await conn.close()


@asynccontextmanager
async def own_database(server: PostgresHandle, *, options: str = "", **settings: Any) -> AsyncIterator[Postgres]:
    """The configuration for an empty database, which belongs to the user `products`; dropped at the end.

    options: of CREATE DATABASE.
    """
    name = f"d{uuid4().hex[:12]}"
    async with superuser(server) as conn:
        await conn.execute(f"CREATE DATABASE {name} OWNER products {options}")
    try:
        yield configuration(server, **{"database": name, **settings})
    finally:
        async with superuser(server) as conn:
            await conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def configuration(server: PostgresHandle, **settings: Any) -> Postgres:
    """The configuration for the server's database `products`, as the user of this name."""
    return Postgres(
        **{
            "host": server.host,
            "port": server.port,
            "database": "products",
            "user": "products",
            "password": server.password,
            "timeout_seconds": PATIENCE / 2,
            "connect_timeout_seconds": PATIENCE,
            **settings,
        }
    )
