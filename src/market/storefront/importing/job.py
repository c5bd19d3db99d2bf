"""The job of an import: its rows, with the plan and the outcome of each.

The storefront stores nothing between two requests. The form of each page contains the job, signed, and sends it with
the next step, so any copy of the storefront can do that step. Sending a job twice does no harm, because each step is
idempotent.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from market.kit.errors import Malformed, TooLarge
from market.storefront.importing.files import Contents
from market.storefront.importing.online_retail import InvalidRow
from market.storefront.importing.rows import Row
from market.storefront.session.cookies import CookieJar

# What the dry run has found: the product will be created or changed, equals the row, or the row cannot be imported.
Plan = Literal["create", "change", "keep", "refuse"]
# What has happened: done as planned; the product has changed since the dry run; or the shop has refused the row.
Outcome = Literal["created", "changed", "conflict", "refused"]
# Why there is a conflict.
Conflict = Literal["modified", "deleted", "exists", "key_used"]

_PURPOSE = "import"
_MAX_AGE_SECONDS = 24 * 3600
# The maximum size of a job as JSON.
_MAX_UNPACKED_BYTES = 32 * 1024 * 1024
# The bytes by which a row may still grow, uncompressed and compressed: until it is compared, and until it is done. So a
# file that is too large for a form is refused at the start, not in the middle.
_GROWTH_COMPARED, _GROWTH_DONE = (1000, 100), (100, 40)
# The maximum length of a field's earlier value, which is only shown.
_MAX_SHOWN = 100


class Item(Struct, array_like=True):
    """A row with its plan and outcome.

    plan: None until the row was compared with the shop
    product_id, version: of the existing product
    before: the fields that will change, with the shop's values, shortened
    field, reason: why the row was refused
    """

    row: Row
    plan: Plan | None = None
    product_id: str | None = None
    version: int | None = None
    before: dict[str, str | None] = {}
    field: str = ""
    reason: str = ""
    outcome: Outcome | None = None
    conflict: Conflict | None = None

    def compare(self, product_id: str, version: int, before: Mapping[str, str | None]) -> None:
        """Record the existing product, and the fields in which it differs."""
        self.product_id, self.version = product_id, version
        self.before = {name: _shorten(value) for name, value in before.items()}
        self.plan = "change" if self.before else "keep"

    @property
    def is_due(self) -> bool:
        """Whether the import still has to create or change the product."""
        return self.outcome is None and self.plan in ("create", "change")


class Job(Struct, kw_only=True):
    """An import. It belongs to one session.

    lines, skipped: as in Contents
    is_started: whether the merchant has started it, after the dry run
    seconds: how long the current phase has worked so far
    """

    session_id: str
    file_name: str
    items: list[Item]
    lines: int
    skipped: dict[str, int]
    is_started: bool = False
    seconds: float = 0.0

    @classmethod
    def of(cls, contents: Contents, file_name: str, session_id: str) -> Job:
        """Return the job of a file, with its rows and invalid rows in the order of the file."""
        items = [Item(row) for row in contents.rows]
        items += [_refused(row) for row in contents.invalid]
        items.sort(key=lambda item: item.row.number)
        return cls(
            session_id=session_id,
            file_name=file_name,
            items=items,
            lines=contents.lines,
            skipped=dict(contents.skipped),
        )

    @property
    def is_compared(self) -> bool:
        """Whether the dry run is complete."""
        return all(item.plan is not None for item in self.items)

    @property
    def is_done(self) -> bool:
        """Whether every row is compared, and created or changed if planned."""
        return self.is_compared and not any(item.is_due for item in self.items)

    @property
    def plans(self) -> Counter[str | None]:
        """The number of rows by plan."""
        return Counter(item.plan for item in self.items)

    @property
    def outcomes(self) -> Counter[str | None]:
        """The number of rows by outcome, of those that are to be created or changed."""
        return Counter(item.outcome for item in self.items if item.plan in ("create", "change"))

    @property
    def progress(self) -> tuple[int, int]:
        """How many rows of the current phase are done, and how many there are."""
        if not self.is_started:
            return sum(item.plan is not None for item in self.items), len(self.items)
        planned = [item for item in self.items if item.plan in ("create", "change")]
        return sum(not item.is_due for item in planned), len(planned)

    @property
    def seconds_left(self) -> int | None:
        """The estimated remaining time of the current phase, in seconds; None if it has not done any row yet."""
        done, total = self.progress
        # Rows that are invalid in the file were done from the start.
        if not self.is_started:
            refused = sum(bool(item.reason) for item in self.items)
            done, total = done - refused, total - refused
        return None if done <= 0 or self.seconds <= 0 else round(self.seconds / done * (total - done))


def select(items: Iterable[Item], view: str) -> list[Item]:
    """Return the items with that plan or outcome, or those still due; all of them for any other view."""
    if view in ("create", "change", "keep", "refuse"):
        return [item for item in items if item.plan == view]
    if view in ("created", "changed", "conflict", "refused"):
        return [item for item in items if item.outcome == view]
    if view == "due":
        return [item for item in items if item.is_due]
    return list(items)


def pack(job: Job, jar: CookieJar, max_bytes: int) -> str:
    """Return the job as signed text. Raises TooLarge if it is too long, or may become so."""
    data = msgspec.json.encode(job)
    open_items = [item for item in job.items if item.plan is None or item.is_due]
    growth = [_GROWTH_COMPARED if item.plan is None else _GROWTH_DONE for item in open_items]
    if len(data) + sum(unpacked for unpacked, _ in growth) > _MAX_UNPACKED_BYTES:
        raise TooLarge("file", "has too much text for one import, and must be split")
    text = jar.sign(_PURPOSE, base64.urlsafe_b64encode(zlib.compress(data, 6)))
    if len(text) + sum(packed for _, packed in growth) > max_bytes:
        raise TooLarge("file", "has too much text for one import, and must be split")
    return text


def unpack(text: str, jar: CookieJar, session_id: str) -> Job:
    """Return the job in the text. Raises Malformed if it is invalid, of another session, or more than a day old."""
    signed = jar.unsign(_PURPOSE, text, max_age=_MAX_AGE_SECONDS)
    if signed is None:
        raise Malformed("job", "was not made by this shop, or is more than a day old")
    try:
        decompressor = zlib.decompressobj()
        data = decompressor.decompress(base64.urlsafe_b64decode(signed), _MAX_UNPACKED_BYTES)
        job = msgspec.json.decode(data, type=Job)
    except (binascii.Error, zlib.error, msgspec.DecodeError):
        raise Malformed("job", "is incomplete") from None
    if job.session_id != session_id:
        raise Malformed("job", "belongs to another session")
    return job


def _shorten(value: str | None) -> str | None:
    return value if value is None or len(value) <= _MAX_SHOWN else value[: _MAX_SHOWN - 1] + "…"


def _refused(row: InvalidRow) -> Item:
    empty = Row(number=row.line or 0, code="", name="", description="", price="", currency="", stock=0)
    return Item(empty, plan="refuse", field=row.column or "", reason=row.reason)
