"""Migrations on real PostgreSQL: applied once, verified by checksum, and never waiting without end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from market.kit.config import Migrations, Postgres
from market.kit.migrations import MigrationError, checksum, migrate, wait_for_schema
from market.kit.postgres import open_pool
from market.kit.process.health import Health
from tests.support.databases import own_database
from tests.support.servers import PostgresHandle
from tests.support.waiting import PATIENCE, until

FIRST = "CREATE TABLE things (id integer);\n"
SECOND = "ALTER TABLE things ADD COLUMN name text;\n"

MakePackage = Callable[..., str]


@pytest.fixture
def make_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePackage:
    """Make a package of migrations: `make_package(first=..., second=..., functions=...)`; the last is repeatable."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(*, functions: str | None = None, **texts: str) -> str:
        name = f"migrations_{uuid4().hex}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        if functions is not None:
            (tmp_path / name / "functions.sql").write_text(functions)
        for number, (title, text) in enumerate(texts.items(), 1):
            (tmp_path / name / f"{number:04}_{title}.sql").write_bytes(text.encode())
        return name

    return make


@pytest.fixture
async def database(postgres: PostgresHandle) -> AsyncIterator[Postgres]:
    async with own_database(postgres) as config:
        yield config


async def connect(config: Postgres) -> Any:
    return await asyncpg.connect(
        host=config.host, port=config.port, database=config.database, user=config.user, password=config.password
    )


async def checksums(config: Postgres) -> dict[str, str | None]:
    conn = await connect(config)
    try:
        return {row["name"]: row["checksum"] for row in await conn.fetch("SELECT * FROM schema_migrations")}
    finally:
        await conn.close()


async def test_each_file_is_applied_once_and_its_checksum_is_stored(
    database: Postgres, make_package: MakePackage
) -> None:
    assert await migrate(database, make_package(first=FIRST)) == ["0001_first.sql"]
    package = make_package(first=FIRST, second=SECOND)
    assert await migrate(database, package) == ["0002_second.sql"]
    assert await migrate(database, package) == []
    assert await checksums(database) == {"0001_first.sql": checksum(FIRST), "0002_second.sql": checksum(SECOND)}
    # An older version of the service accepts the newer schema.
    assert await migrate(database, make_package(first=FIRST)) == []


async def test_a_file_that_has_changed_since_it_was_applied_is_named_and_nothing_is_applied(
    database: Postgres, make_package: MakePackage
) -> None:
    await migrate(database, make_package(first=FIRST))
    changed = make_package(first=FIRST.replace("integer", "bigint"), second=SECOND)
    with pytest.raises(MigrationError, match=r"^0001_first\.sql has changed since it was applied"):
        await migrate(database, changed)
    assert list(await checksums(database)) == ["0001_first.sql"]
    # Line endings are not a change: git may convert them.
    assert await migrate(database, make_package(first=FIRST.replace("\n", "\r\n"))) == []


async def test_rows_of_the_version_without_checksums_get_those_of_the_files(
    database: Postgres, make_package: MakePackage
) -> None:
    conn = await connect(database)
    try:
        # The table as that version creates it.
        await conn.execute(
            "CREATE TABLE schema_migrations (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        await conn.execute("INSERT INTO schema_migrations (name) VALUES ('0001_first.sql')")
        await conn.execute(FIRST)
        reworded = f"-- Reworded since.\n{FIRST}"
        package = make_package(first=reworded, second=SECOND)
        assert await migrate(database, package) == ["0002_second.sql"]
        # That version still runs beside this one, and stores no checksum.
        await conn.execute("INSERT INTO schema_migrations (name) VALUES ('0003_third.sql')")
    finally:
        await conn.close()
    assert await migrate(database, make_package(first=reworded, second=SECOND, third="SELECT 1")) == []
    assert await checksums(database) == {
        "0001_first.sql": checksum(reworded),
        "0002_second.sql": checksum(SECOND),
        "0003_third.sql": checksum("SELECT 1"),
    }
    with pytest.raises(MigrationError, match=r"^0001_first\.sql has changed"):
        await migrate(database, make_package(first=FIRST))


async def test_concurrent_calls_wait_for_each_other(database: Postgres, make_package: MakePackage) -> None:
    package = make_package(first=f"SELECT pg_sleep(0.3); {FIRST}")
    done = await asyncio.gather(*(migrate(database, package) for _ in range(3)))
    assert sorted(done, key=len) == [[], [], ["0001_first.sql"]]


async def test_a_lock_that_another_process_keeps_is_an_error_in_time(
    postgres: PostgresHandle, make_package: MakePackage
) -> None:
    async with own_database(postgres, migrations=Migrations(lock_timeout_seconds=0.2)) as config:
        conn = await connect(config)
        try:
            await conn.execute("SELECT pg_advisory_lock(hashtext('market.migrations'))")
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(MigrationError, match=r"held the migration lock for more than 0\.2 s"):
                    await migrate(config, make_package(first=FIRST))
            # The end of the session would release it a moment later.
            await conn.execute("SELECT pg_advisory_unlock(hashtext('market.migrations'))")
        finally:
            await conn.close()
        assert await migrate(config, make_package(first=FIRST)) == ["0001_first.sql"]


async def test_a_migration_that_fails_is_rolled_back_and_named(database: Postgres, make_package: MakePackage) -> None:
    with pytest.raises(
        MigrationError, match=r'^0002_second\.sql failed, and was rolled back: .*"thinks" does not exist'
    ):
        await migrate(database, make_package(first=FIRST, second=f"{SECOND} TABLE thinks"))
    assert list(await checksums(database)) == ["0001_first.sql"]
    assert await migrate(database, make_package(first=FIRST, second=SECOND)) == ["0002_second.sql"]


@pytest.mark.parametrize(
    "file", ["002_second.sql", "0002_Second.sql", "0002-second.sql", "Functions.sql", "0002_a.SQL"]
)
async def test_a_file_whose_name_does_not_fit_is_named_and_nothing_is_applied(
    database: Postgres, make_package: MakePackage, tmp_path: Path, file: str
) -> None:
    package = make_package(first=FIRST)
    (tmp_path / package / file).write_text(SECOND)
    with pytest.raises(MigrationError) as e:
        await migrate(database, package)
    assert str(e.value) == (
        f"{file}: the name of a migration must be NNNN_name.sql (four digits) or name.sql, and the name may have only "
        "lower-case letters, digits and underscores"
    )
    (tmp_path / package / file).unlink()
    assert await migrate(database, package) == ["0001_first.sql"]


async def test_a_migration_that_takes_too_long_is_rolled_back(
    postgres: PostgresHandle, make_package: MakePackage
) -> None:
    async with own_database(postgres, migrations=Migrations(timeout_seconds=2)) as config:
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(
                MigrationError, match=r"^0001_first\.sql did not finish within 2 s, and was rolled back"
            ):
                await migrate(config, make_package(first=f"{FIRST} SELECT pg_sleep({PATIENCE})"))
        assert await checksums(config) == {}
        assert await migrate(config, make_package(first=FIRST)) == ["0001_first.sql"]


CONCURRENT = """-- concurrently
DROP INDEX CONCURRENTLY IF EXISTS things_id;
CREATE UNIQUE INDEX CONCURRENTLY things_id ON things (id);
"""


async def test_a_concurrent_file_builds_its_index_beside_an_open_write(
    database: Postgres, make_package: MakePackage
) -> None:
    await migrate(database, make_package(first=FIRST))
    writer = await connect(database)
    try:
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute("INSERT INTO things VALUES (1)")
        package = make_package(first=FIRST, second=CONCURRENT)
        # Three at once: those that wait for the lock must not be what the first one waits for.
        running = [asyncio.create_task(migrate(database, package)) for _ in range(3)]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in running)
        # The table is not locked meanwhile.
        async with asyncio.timeout(PATIENCE):
            await writer.execute("INSERT INTO things VALUES (2)")
        await transaction.commit()
        assert sorted(await asyncio.gather(*running), key=len) == [[], [], ["0002_second.sql"]]
        assert await writer.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'things_id'::regclass")
    finally:
        await writer.close()


async def test_a_concurrent_file_that_failed_is_applied_again(database: Postgres, make_package: MakePackage) -> None:
    package = make_package(first=FIRST, second=CONCURRENT)
    await migrate(database, make_package(first=FIRST))
    conn = await connect(database)
    try:
        await conn.execute("INSERT INTO things VALUES (1), (1)")
        with pytest.raises(
            MigrationError, match=r"^0002_second\.sql failed, and will be applied again from its beginning"
        ):
            await migrate(database, package)
        assert list(await checksums(database)) == ["0001_first.sql"]
        await conn.execute("TRUNCATE things")
        assert await migrate(database, package) == ["0002_second.sql"]
        assert await conn.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'things_id'::regclass")
    finally:
        await conn.close()


REPEATED = """-- repeatedly
UPDATE things SET id = -id WHERE id IN (SELECT id FROM things WHERE id > 0 ORDER BY id LIMIT 2);
"""


async def test_a_repeated_file_runs_in_transactions_of_its_own_until_it_changes_nothing(
    database: Postgres, make_package: MakePackage
) -> None:
    await migrate(database, make_package(first=FIRST))
    conn = await connect(database)
    try:
        await conn.execute("INSERT INTO things SELECT generate_series(1, 5)")
        assert await migrate(database, make_package(first=FIRST, second=REPEATED)) == ["0002_second.sql"]
        rows = await conn.fetch("SELECT id, xmin::text AS transaction FROM things ORDER BY id DESC")
        assert [row["id"] for row in rows] == [-1, -2, -3, -4, -5]
        assert len({row["transaction"] for row in rows}) == 3
    finally:
        await conn.close()


async def test_a_repeated_file_that_failed_is_continued(database: Postgres, make_package: MakePackage) -> None:
    package = make_package(first=FIRST, second=REPEATED)
    await migrate(database, make_package(first=FIRST))
    conn = await connect(database)
    try:
        await conn.execute("INSERT INTO things SELECT generate_series(1, 5)")
        await conn.execute("ALTER TABLE things ADD CHECK (id > -4)")
        with pytest.raises(MigrationError, match=r"^0002_second\.sql failed, and will be continued"):
            await migrate(database, package)
        assert await conn.fetchval("SELECT array_agg(id ORDER BY id) FROM things") == [-2, -1, 3, 4, 5]
        await conn.execute("ALTER TABLE things DROP CONSTRAINT things_id_check")
        assert await migrate(database, package) == ["0002_second.sql"]
        assert await conn.fetchval("SELECT max(id) FROM things") == -1
    finally:
        await conn.close()


def functions(version: int, value: int) -> str:
    """Return a repeatable file whose function `answer` returns `value`."""
    body = f"SELECT {value} FROM things LIMIT 1"
    return (
        f"-- version {version}\nCREATE OR REPLACE FUNCTION answer() RETURNS integer LANGUAGE sql AS $$ "
        f"SELECT coalesce(({body}), {value}) $$;\n"
    )


async def answer(config: Postgres) -> int:
    conn = await connect(config)
    try:
        return int(await conn.fetchval("SELECT answer()"))
    finally:
        await conn.close()


async def test_a_repeatable_file_is_applied_after_the_numbered_ones_whenever_its_version_is_higher(
    database: Postgres, make_package: MakePackage
) -> None:
    package = make_package(first=FIRST, functions=functions(1, 10))
    assert await migrate(database, package) == ["0001_first.sql", "functions.sql, version 1"]
    assert await migrate(database, package) == []
    later = make_package(first=FIRST, second=SECOND, functions=functions(10, 20))
    assert await migrate(database, later) == ["0002_second.sql", "functions.sql, version 10"]
    assert await answer(database) == 20
    # The init container of an old pod, which may restart during a rolling update, leaves the newer function.
    assert await migrate(database, package) == []
    assert await migrate(database, make_package(first=FIRST, functions=functions(9, 15))) == []
    assert await answer(database) == 20


async def test_a_repeatable_file_that_has_changed_needs_a_higher_version(
    database: Postgres, make_package: MakePackage
) -> None:
    await migrate(database, make_package(first=FIRST, functions=functions(1, 10)))
    with pytest.raises(MigrationError, match=r"version 1 has changed .* raise the version in .* functions\.sql$"):
        await migrate(database, make_package(first=FIRST, functions=functions(1, 11)))
    assert await answer(database) == 10
    with pytest.raises(MigrationError, match=r"^functions\.sql: the first line .* must be `-- version N`$"):
        await migrate(database, make_package(first=FIRST, functions="SELECT 1;"))


async def test_a_service_waits_until_its_functions_are_at_least_of_its_version(
    database: Postgres, make_package: MakePackage
) -> None:
    await migrate(database, make_package(first=FIRST, functions=functions(2, 10)))
    async with open_pool(database, Health()) as pool:
        for version in (1, 2):
            await wait_for_schema(pool, make_package(first=FIRST, functions=functions(version, 10)), Health())
        health = Health()
        newer = make_package(first=FIRST, functions=functions(3, 10))
        waiting = asyncio.create_task(wait_for_schema(pool, newer, health))
        await until(lambda: "functions.sql, version 3" in health.unready_reasons().get("schema", ""))
        await migrate(database, newer)
        async with asyncio.timeout(PATIENCE):
            await waiting
