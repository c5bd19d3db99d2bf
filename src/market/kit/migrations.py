"""Forward-only migrations of a PostgreSQL database: the SQL files of a package.

A file with a number, `NNNN_name.sql`, is applied once. A file without a number, such as `functions.sql`, is versioned:
its first line is `-- version N`. When N has been raised, the whole file is applied again, after the numbered files.
Names consist of lower-case letters, digits and underscores. An SQL file with another name is an error.

The table `schema_migrations` contains a row for each applied file (and version), with the checksum of its text. A
numbered file must not be changed once it is released: to change the schema, add a file.

A file is applied in one transaction, unless its first line is `-- concurrently`. Then each of its statements is
executed outside of a transaction, as CREATE INDEX CONCURRENTLY requires. A statement ends with a semicolon at the end
of a line. If a statement fails, the next run applies the whole file again, so all statements must be idempotent: for
example, put DROP INDEX CONCURRENTLY IF EXISTS before CREATE INDEX CONCURRENTLY.

A file whose first line is `-- repeatedly` changes many rows, a few at a time. Its only statement is repeated, each time
in its own transaction, until it changes no row. So no row is locked for long, and after a failure the next run of
`migrate` continues.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Collection
from importlib.resources import files
from typing import NamedTuple

import asyncpg

from market.kit.config import Postgres
from market.kit.postgres import Connector, DirectConnection, Pool
from market.kit.process import logs
from market.kit.process.health import Health
from market.kit.process.lifecycle import CommandError

log = logs.get_logger("migrations")

# The timeout of each statement that is not part of a migration.
_STATEMENT_SECONDS = 30.0
# If the host that runs `migrate` disappears, the server ends the session and releases the lock within a minute.
_SETTINGS = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}
_NAME = re.compile(r"\d{4}_[a-z0-9_]+\.sql")
_VERSIONED_NAME = re.compile(r"[a-z][a-z0-9_]*\.sql")
_VERSION = re.compile(r"-- version ([1-9]\d{0,5})")
_CONCURRENTLY = "-- concurrently"
_REPEATEDLY = "-- repeatedly"
_END_OF_STATEMENT = re.compile(r";[ \t]*$", re.MULTILINE)
# The pause between two attempts to get the lock.
_LOCK_RETRY_SECONDS = 0.1


class MigrationError(CommandError):
    """Migrations cannot be applied."""


class _Migration(NamedTuple):
    """A file of a package.

    name: the name in `schema_migrations`. For a versioned file, it includes the version
    file: the name of the file
    version: 0 for a numbered file
    """

    name: str
    text: str
    file: str
    version: int = 0

    def is_applied(self, applied: Collection[str]) -> bool:
        """Return whether the file, or a higher version of it, is among the applied files.

        applied: the names of the applied files
        """
        if not self.version:
            return self.name in applied
        prefix = f"{self.file}, version "
        return any(int(name.removeprefix(prefix)) >= self.version for name in applied if name.startswith(prefix))


def _migrations(package: str) -> list[_Migration]:
    """Return the package's files in the order in which they are applied. Raises MigrationError."""
    numbered, versioned = [], []
    for file in sorted(f.name for f in files(package).iterdir()):
        text = (files(package) / file).read_text("utf-8") if file.endswith(".sql") else ""
        if _NAME.fullmatch(file):
            numbered.append(_Migration(file, text, file))
        elif _VERSIONED_NAME.fullmatch(file):
            version = _VERSION.fullmatch(text.partition("\n")[0].rstrip())
            if version is None:
                raise MigrationError(f"{file}: the first line of a file without a number must be `-- version N`")
            versioned.append(_Migration(f"{file}, version {version[1]}", text, file, int(version[1])))
        elif file.lower().endswith(".sql"):
            raise MigrationError(
                f"{file}: the name of a migration must be NNNN_name.sql (four digits) or name.sql, and the name may "
                "have only lower-case letters, digits and underscores"
            )
    return numbered + versioned


def checksum(text: str) -> str:
    """Return the SHA-256 of a migration's text in hexadecimal, the same for all line endings."""
    return hashlib.sha256("\n".join(text.splitlines()).encode()).hexdigest()


async def wait_for_schema(pool: Pool, package: str, health: Health) -> None:
    """Wait until every migration of the package has been applied. A newer schema is accepted."""

    async def check() -> None:
        try:
            done = {row["name"] for row in await pool.fetch("SELECT name FROM schema_migrations")}
        except asyncpg.UndefinedTableError:
            done = set()
        if pending := [migration.name for migration in _migrations(package) if not migration.is_applied(done)]:
            raise RuntimeError(f"pending migrations: {', '.join(pending)}; run `migrate`")

    await health.wait_for("schema", check)


async def migrate(config: Postgres, package: str, health: Health | None = None) -> list[str]:
    """Apply the pending files of the package one after another, and return their names.

    Concurrent calls are safe, because an advisory lock is taken. A newer schema is accepted. Each file must be
    compatible with the previous version of the service, which is still running.

    Raises MigrationError if a file fails, takes too long or has changed since it was applied, or if another process
    holds the lock for too long.
    """
    connector = Connector(config, settings=_SETTINGS, timeout_seconds=_STATEMENT_SECONDS)
    conn = await (health or Health()).wait_for("postgres", connector)
    try:
        await _lock(conn, config.migrations.lock_timeout_seconds)
        await _create_table(conn)
        migrations = _migrations(package)
        done = await _verify_applied(conn, migrations)
        pending = [migration for migration in migrations if not migration.is_applied(done)]
        for migration in pending:
            await _apply(conn, migration.name, migration.text, config.migrations.timeout_seconds)
        return [migration.name for migration in pending]
    finally:
        await conn.close(timeout=_STATEMENT_SECONDS)


async def _lock(conn: DirectConnection, seconds: float) -> None:
    give_up_at = time.monotonic() + seconds
    # pg_advisory_lock could deadlock: the other process may run CREATE INDEX CONCURRENTLY, which waits for all running
    # statements. One of them would be the pg_advisory_lock of this process.
    while not await conn.fetchval("SELECT pg_try_advisory_lock(hashtext('market.migrations'))"):
        if time.monotonic() > give_up_at:
            raise MigrationError(
                f"another process has held the migration lock for more than {seconds:g} s: it is still "
                "applying a migration, or is hung; its pid is in pg_locks, with locktype 'advisory'"
            )
        await asyncio.sleep(_LOCK_RETRY_SECONDS)


async def _create_table(conn: DirectConnection) -> None:
    await conn.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations "
        "(name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now(), checksum text)"
    )
    # A table that an earlier version created has no column for checksums. ADD COLUMN IF NOT EXISTS would lock the table
    # in every run, so check first.
    if not await conn.fetchval(
        "SELECT true FROM pg_attribute "
        "WHERE attrelid = 'schema_migrations'::regclass AND attname = 'checksum' AND NOT attisdropped"
    ):
        async with conn.transaction():
            await conn.execute("SET LOCAL lock_timeout = '5s'")
            await conn.execute("ALTER TABLE schema_migrations ADD COLUMN checksum text")


async def _verify_applied(conn: DirectConnection, migrations: list[_Migration]) -> set[str]:
    """Return the names of all applied migrations. Raises MigrationError if a file differs from what was applied.

    A row without a checksum was written by an earlier version of `migrate`. The checksum of the file is added to it.
    """
    applied = {row["name"]: row["checksum"] for row in await conn.fetch("SELECT name, checksum FROM schema_migrations")}
    for name, text, file, version in migrations:
        if name not in applied:
            continue
        current = checksum(text)
        if applied[name] is None:
            await conn.execute("UPDATE schema_migrations SET checksum = $2 WHERE name = $1", name, current)
            log.info("migration checksum recorded", migration=name)
        elif applied[name] != current:
            remedy = "restore its text, and put the change into a new migration"
            if version:
                remedy = f"raise the version in the first line of {file}"
            raise MigrationError(
                f"{name} has changed since it was applied (checksum {applied[name][:12]}, now {current[:12]}): {remedy}"
            )
    return set(applied)


async def _apply(conn: DirectConnection, name: str, text: str, seconds: float) -> None:
    execute, outcome = {
        _CONCURRENTLY: (_execute_concurrently, "will be applied again from its beginning"),
        _REPEATEDLY: (_execute_repeatedly, "will be continued"),
    }.get(text.partition("\n")[0].rstrip(), (_execute, "was rolled back"))
    try:
        async with asyncio.timeout(seconds):
            await execute(conn, name, text, seconds)
    except TimeoutError:
        raise MigrationError(f"{name} did not finish within {seconds:g} s, and {outcome}") from None
    except asyncpg.PostgresError as e:
        raise MigrationError(f"{name} failed, and {outcome}: {e}") from e
    log.info("migration applied", migration=name)


async def _execute(conn: DirectConnection, name: str, text: str, seconds: float) -> None:
    async with conn.transaction():
        # While a migration waits for a lock on a table, all requests that use the table wait behind it. So it gives up
        # soon, and the next run of `migrate` tries again.
        await conn.execute("SET LOCAL lock_timeout = '5s'")
        await conn.execute(text, timeout=seconds)
        await _record(conn, name, text)


async def _execute_concurrently(conn: DirectConnection, name: str, text: str, seconds: float) -> None:
    for statement in filter(str.strip, _END_OF_STATEMENT.split(text)):
        await conn.execute(statement, timeout=seconds)
    await _record(conn, name, text)


async def _execute_repeatedly(conn: DirectConnection, name: str, text: str, seconds: float) -> None:
    status = ""
    while not status.endswith(" 0"):
        async with conn.transaction():
            await conn.execute("SET LOCAL lock_timeout = '5s'")
            # The status is, for example, "UPDATE 250".
            status = await conn.execute(text, timeout=seconds)
    await _record(conn, name, text)


async def _record(conn: DirectConnection, name: str, text: str) -> None:
    await conn.execute("INSERT INTO schema_migrations (name, checksum) VALUES ($1, $2)", name, checksum(text))
