"""Inventory's configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from market.kit import config as kit


class Grpc(kit.Listen, frozen=True, kw_only=True):
    # Calls under way in one process; one more is refused at once (RESOURCE_EXHAUSTED).
    max_in_flight: Annotated[int, Meta(ge=1)] = 1024
    # Reservations that wait for their turn in one process; beyond it, too, a call is refused.
    max_waiting: Annotated[int, Meta(ge=1)] = 16_384


class Gathering(kit.Section, frozen=True, kw_only=True):
    """Reservations in one transaction, and transactions at once. docs/decisions/0003 has the measurements."""

    most: Annotated[int, Meta(ge=1, le=1024)] = 128
    under_way: Annotated[int, Meta(ge=1, le=16)] = 2


class Retention(kit.Section, frozen=True, kw_only=True):
    """How long a cancelled reservation is remembered, and so a late duplicate of it refused."""

    cancelled_days: Annotated[float, Meta(gt=0, le=36_500)] = 30
    every_seconds: kit.Seconds = 3600
    # Rows in one transaction.
    batch: Annotated[int, Meta(ge=1, le=100_000)] = 1000


class Config(kit.Base, frozen=True, kw_only=True):
    grpc: Grpc
    postgres: kit.Postgres
    gathering: Gathering = Gathering()
    retention: Retention = Retention()
