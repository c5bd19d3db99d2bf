"""Inventory's configuration."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from market.kit import config as kit
from market.kit.auth.config import Auth, SignInConfig


class Grpc(kit.Listen, frozen=True, kw_only=True):
    # Calls in flight in one process; one more is refused at once (RESOURCE_EXHAUSTED).
    max_in_flight: Annotated[int, Meta(ge=1)] = 1024
    # Reservations waiting for a transaction in one process; beyond this, calls are refused in the same way.
    max_pending: Annotated[int, Meta(ge=1)] = 16_384
    # None: unencrypted. Otherwise clients must present a certificate.
    tls: kit.MutualTls | None = None


class Batching(kit.Section, frozen=True, kw_only=True):
    """How many reservations share a transaction, and how many transactions run at once (docs/decisions/0003)."""

    max_batch_size: Annotated[int, Meta(ge=1, le=1024)] = 128
    max_concurrency: Annotated[int, Meta(ge=1, le=16)] = 2


class Retention(kit.Section, frozen=True, kw_only=True):
    """How long cancelled reservations and deliveries are kept.

    As long as they are, a late duplicate of a reservation is rejected, and a repeated delivery is not added again.
    """

    cancelled_days: Annotated[float, Meta(gt=0, le=36_500)] = 30
    deliveries_days: Annotated[float, Meta(gt=0, le=36_500)] = 30
    # The pause between two passes.
    interval_seconds: kit.Seconds = 3600
    # Rows deleted by one transaction.
    batch_size: Annotated[int, Meta(ge=1, le=100_000)] = 1000


class InventoryAuth(Auth, frozen=True, kw_only=True):
    """Whose tokens are accepted, and which services they belong to."""

    # Services by the subjects of their tokens, such as system:serviceaccount:market:product-service. A caller whose
    # subject is not among them may call nothing.
    callers: dict[str, Literal["products", "orders"]] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_required and not self.callers:
            raise ValueError("callers must be set if mode is required")
        if "" in self.callers:
            raise ValueError("callers must not have an empty subject")


class Config(SignInConfig, frozen=True, kw_only=True):
    auth: InventoryAuth = InventoryAuth()
    grpc: Grpc
    postgres: kit.Postgres
    batching: Batching = Batching()
    retention: Retention = Retention()
