"""The scratch database keeps a reconciliation's topic states (topic_reader.py) and products on disk, to save memory."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from uuid import UUID

from market.kit.errors import Unavailable

_CACHE_KIB = 8_192
_MAX_PARAMETERS = 500


class ScratchDatabase:
    """A temporary SQLite database. It is deleted when it is closed or when the process ends.

    It takes about 40 bytes of disk space for each order that has events in the topic. Every method, and the
    constructor, may raise Unavailable, for example if the disk is full. Any thread may call a method, but only one at a
    time.

    directory: where the file is created; by default, in the system's directory for temporary files
    """

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory or tempfile.gettempdir()
        with self._errors():
            descriptor, path = tempfile.mkstemp(prefix="reconcile-", dir=self._directory)
            os.close(descriptor)
            try:
                self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
                # Nothing has to be durable, because the database does not outlive the process.
                for pragma in ("journal_mode=OFF", "synchronous=OFF", "temp_store=MEMORY", f"cache_size=-{_CACHE_KIB}"):
                    self._connection.execute(f"PRAGMA {pragma}")
                self._connection.executescript(
                    """
                    CREATE TABLE topic_states (order_id BLOB PRIMARY KEY, state INTEGER NOT NULL) WITHOUT ROWID;
                    CREATE TABLE unreadable (position TEXT NOT NULL);
                    CREATE TABLE products (id TEXT PRIMARY KEY, is_reserved INTEGER NOT NULL) WITHOUT ROWID;
                    """
                )
            finally:
                # SQLite keeps the unlinked file open. The operating system deletes it when the connection is closed.
                os.unlink(path)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as e:
            raise Unavailable(f"the scratch database in {self._directory} failed: {e}") from None

    def topic_states(self, order_ids: Sequence[UUID]) -> dict[UUID, int]:
        """Return the topic states by order id. Orders without a topic state are left out."""
        found: dict[UUID, int] = {}
        with self._errors():
            for start in range(0, len(order_ids), _MAX_PARAMETERS):
                part = [order_id.bytes for order_id in order_ids[start : start + _MAX_PARAMETERS]]
                placeholders = ",".join("?" * len(part))
                rows = self._connection.execute(
                    # S608: only placeholders are inserted.
                    f"SELECT order_id, state FROM topic_states WHERE order_id IN ({placeholders})",  # noqa: S608
                    part,
                )
                found.update((UUID(bytes=order_id), state) for order_id, state in rows)
        return found

    def set_topic_states(self, states: Mapping[UUID, int]) -> None:
        """Insert or replace the topic states of these orders."""
        with self._errors():
            self._connection.execute("BEGIN")
            self._connection.executemany(
                "INSERT INTO topic_states VALUES (?, ?) ON CONFLICT DO UPDATE SET state = excluded.state",
                [(order_id.bytes, state) for order_id, state in sorted(states.items())],
            )
            self._connection.execute("COMMIT")

    def topic_states_after(self, order_id: UUID | None, limit: int) -> list[tuple[UUID, int]]:
        """Return up to `limit` pairs (order id, topic state) by ascending order id.

        order_id: only orders with a greater id. None: from the beginning
        """
        with self._errors():
            rows = self._connection.execute(
                "SELECT order_id, state FROM topic_states WHERE order_id > ? ORDER BY order_id LIMIT ?",
                (order_id.bytes if order_id is not None else b"", limit),
            ).fetchall()
        return [(UUID(bytes=found), state) for found, state in rows]

    def add_unreadable(self, position: str) -> None:
        """Add the position of a message that cannot be parsed: topic/partition/offset."""
        with self._errors():
            self._connection.execute("INSERT INTO unreadable VALUES (?)", (position,))

    def unreadable(self) -> Iterator[str]:
        """Yield the positions of messages that cannot be parsed."""
        last = 0
        while True:
            with self._errors():
                rows = self._connection.execute(
                    "SELECT rowid, position FROM unreadable WHERE rowid > ? ORDER BY rowid LIMIT 500", (last,)
                ).fetchall()
            if not rows:
                return
            yield from (position for _, position in rows)
            last = rows[-1][0]

    def add_products(self, reserved_by_product_id: Mapping[str, bool]) -> None:
        """Add product ids, and whether a reservation holds units of the product. True replaces an earlier False."""
        with self._errors():
            self._connection.execute("BEGIN")
            self._connection.executemany(
                "INSERT INTO products VALUES (?, ?) "
                "ON CONFLICT DO UPDATE SET is_reserved = is_reserved OR excluded.is_reserved",
                sorted(reserved_by_product_id.items()),
            )
            self._connection.execute("COMMIT")

    def products_after(self, product_id: str, limit: int) -> dict[str, bool]:
        """Return up to `limit` products by ascending id. The value says whether a reservation holds units of a product.

        product_id: only products with a greater id
        """
        with self._errors():
            rows = self._connection.execute(
                "SELECT id, is_reserved FROM products WHERE id > ? ORDER BY id LIMIT ?", (product_id, limit)
            ).fetchall()
        return {found: bool(is_reserved) for found, is_reserved in rows}

    def close(self) -> None:
        """Delete the database."""
        self._connection.close()
