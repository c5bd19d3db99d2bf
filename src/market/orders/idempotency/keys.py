"""IdempotencyKeyRepository: which order has an idempotency key. The orders' documents contain the keys.

A key belongs to its owner: the subject of the caller's token, or the order's user if nobody is signed in. Equal keys of
different owners are different keys. Instances of several versions may place orders at the same time, so a key is stored
in up to three fields. docs/decisions/0025 has the fields and the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from msgspec import Struct

from market.kit.batching import Batcher
from market.orders.domain import KEY_HOLDING_STATUSES, Order
from market.orders.mongodb.collection import OrdersCollection, documents


class IdempotencyKeyTaken(Exception):
    """Another order has the idempotency key.

    Usually, that order belongs to the same owner. It may also be a pending order of another owner, because the key is
    also stored in `idempotency_key`, which is unique per user, and in `key`, which is unique among all orders. If that
    order is rejected, these fields become free.
    """


class KeyFieldTaken(IdempotencyKeyTaken):
    """Another order has the key in `field` (`idempotency_key` or `key`). Its owner may be the same or another one."""

    def __init__(self, field: str) -> None:
        self.field = field


class KeyLookup(NamedTuple):
    """An idempotency key, and the request that was sent with it.

    user: the user of the order
    subject: the owner of the key if the caller is signed in. None: the owner is the user
    digest: the SHA-256 of the request
    """

    user: str
    key: str
    subject: str | None
    digest: bytes

    @property
    def insert_detects_reuse(self) -> bool:
        """Whether inserting an order with this key always fails if the owner already has an order with the key.

        False if the caller orders for another user: orders from before sign-in was required have no `subject_key`, so
        the unique indexes only know whom they were placed for, but not by whom.
        """
        return self.subject in (None, self.user)


class KeyHolder(Struct, frozen=True):
    """The order that has an idempotency key, and the digest of the request that placed it.

    subject: the owner of the key if the caller was signed in. None: the owner is the user
    """

    order_id: UUID
    digest: bytes
    subject: str | None


# By (owner, idempotency key).
_Holders = Mapping[tuple[str, str], KeyHolder]


class IdempotencyKeyRepository:
    """Finds keys in the orders' documents. Every method may raise Unavailable."""

    def __init__(self, collection: OrdersCollection) -> None:
        self._collection = collection
        self._lookups: Batcher[KeyLookup, KeyHolder | None] = Batcher(
            self._find_many, name="orders.keys", max_batch_size=128, max_concurrency=2, dedupe=True
        )

    async def find(self, lookup: KeyLookup) -> KeyHolder | None:
        """Return the order that has the key, or None if the key is free."""
        return await self._lookups(lookup)

    async def _find_many(self, lookups: list[KeyLookup]) -> Sequence[KeyHolder | None]:
        keys = list({lookup.key for lookup in lookups})
        # An order that was placed before sign-in became mandatory may also be the caller's. Its user then equals the
        # subject of the caller's token.
        users = {lookup.user for lookup in lookups} | {lookup.subject or lookup.user for lookup in lookups}
        by_user = {"user": {"$in": list(users)}, "idempotency_key": {"$in": keys}, "digest": {"$exists": True}}
        # Some earlier versions stored only `key`.
        alternatives: list[documents.Document] = [by_user, {"key": {"$in": keys}}]
        if subject_keys := [documents.subject_key(e.subject, e.key) for e in lookups if e.subject is not None]:
            alternatives.append({"subject_key": {"$in": subject_keys}, "digest": {"$exists": True}})
        fields = ("user", "idempotency_key", "key", "subject_key", "digest")
        holders_by_subject: dict[tuple[str, str], KeyHolder] = {}
        holders_by_user: dict[tuple[str, str], KeyHolder] = {}
        for d in await self._collection.find({"$or": alternatives}, dict.fromkeys(fields, 1)):
            if not isinstance(d.get("digest"), bytes):
                continue
            holder = KeyHolder(d["_id"], bytes(d["digest"]), documents.key_subject(d))
            if holder.subject is not None:
                holders_by_subject[holder.subject, d["subject_key"]["key"]] = holder
            if (key := d.get("idempotency_key", d.get("key"))) is not None:
                holders_by_user[d["user"], key] = holder
        return [_find_holder(lookup, holders_by_subject, holders_by_user) for lookup in lookups]

    async def is_kept_by_another_owner(self, order: Order, field: str) -> bool:
        """Return whether an order of another owner has this order's key in the field, and will never free it.

        Return False if that order is still pending, or has a status that only a newer version knows.
        """
        where: documents.Document = {field: order.idempotency_key}
        if field == "idempotency_key":
            where |= {"user": order.user, "digest": {"$exists": True}}
        found = await self._collection.find(where, {"user": 1, "status": 1, "subject_key": 1, "digest": 1})
        return any(d["status"] in KEY_HOLDING_STATUSES and not _has_same_owner(order, d) for d in found)


def _find_holder(lookup: KeyLookup, holders_by_subject: _Holders, holders_by_user: _Holders) -> KeyHolder | None:
    """Return the order that has the key."""
    user_holder = holders_by_user.get((lookup.user, lookup.key))
    if lookup.subject is None:
        return user_holder
    if own := holders_by_subject.get((lookup.subject, lookup.key)):
        return own
    # An order that was placed before sign-in became mandatory: the caller's own, or one from exactly the same request.
    own_earlier = holders_by_user.get((lookup.subject, lookup.key))
    if own_earlier is not None and own_earlier.subject is None:
        return own_earlier
    if user_holder is not None and user_holder.subject is None and user_holder.digest == lookup.digest:
        return user_holder
    return None


def _has_same_owner(order: Order, holder: documents.Document) -> bool:
    """Return whether the key in the stored document `holder` has the same owner as the new order's key."""
    if order.key_subject is None:
        return bool(holder["user"] == order.user)
    if (subject := documents.key_subject(holder)) is not None:
        return subject == order.key_subject
    # The stored order was placed before sign-in was required, so its caller is unknown.
    same_request = holder["user"] == order.user and holder.get("digest") == order.digest
    return holder["user"] == order.key_subject or same_request
