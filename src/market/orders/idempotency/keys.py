"""IdempotencyKeyRepository: which order has an idempotency key. The orders' documents contain the keys.

The key of a signed-in caller belongs to the subject of the caller's token, no matter which user the order is for. In
mode `open`, a key belongs to the user.

During an upgrade, instances that require sign-in, instances in mode `open`, and instances of earlier versions place
orders at the same time. A request that is repeated must place only one order, no matter which instances handle it. So a
key is stored in up to three fields, each with a unique index (mongodb/documents.py):

- `subject_key` contains the subject and the key.
- `idempotency_key` is unique among the orders of one user. It is for instances in mode `open` and of earlier versions,
  which know no subjects. If another subject's order for the same user already has the key, this field is left out, and
  the order is found by `subject_key` alone.
- `key` is unique across users. It is for even earlier versions.

A document without `subject_key` was stored by an instance that does not know who placed the order. Its key counts for
the order's user, and for anybody who sends exactly the same request: for example, for a merchant who sent a request
before sign-in was required, and now repeats it signed in. The request must name the order's user, so only callers who
may order for others can get another user's order in this way.
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

    Either its key belongs to the same subject (or user), or the order is undecided: it is pending, or has a status that
    only a newer version knows.
    """


class KeyFieldTaken(IdempotencyKeyTaken):
    """Another order has the key in `field`: `idempotency_key` or `key`. The field does not tell whose key it is."""

    def __init__(self, field: str) -> None:
        self.field = field


class KeyLookup(NamedTuple):
    """An idempotency key, and the request that was sent with it.

    user: the user of the order
    subject: the subject that the key belongs to. None: the key belongs to the user
    digest: the SHA-256 of the request
    """

    user: str
    key: str
    subject: str | None
    digest: bytes


class KeyHolder(Struct, frozen=True):
    """The order that has an idempotency key, and the digest of the request that placed it.

    subject: the subject that the key belongs to. None: the key belongs to the user
    """

    order_id: UUID
    digest: bytes
    subject: str | None


# By (subject or user, idempotency key).
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
        users = {lookup.user for lookup in lookups} | {lookup.subject or lookup.user for lookup in lookups}
        by_user = {"user": {"$in": list(users)}, "idempotency_key": {"$in": keys}, "digest": {"$exists": True}}
        # The orders of even earlier versions have only `key`.
        alternatives: list[documents.Document] = [by_user, {"key": {"$in": keys}}]
        if subject_keys := [documents.subject_key(e.subject, e.key) for e in lookups if e.subject is not None]:
            alternatives.append({"subject_key": {"$in": subject_keys}, "digest": {"$exists": True}})
        fields = ("user", "idempotency_key", "key", "subject_key", "digest")
        of_subjects: dict[tuple[str, str], KeyHolder] = {}
        of_users: dict[tuple[str, str], KeyHolder] = {}
        for d in await self._collection.find({"$or": alternatives}, dict.fromkeys(fields, 1)):
            if not isinstance(d.get("digest"), bytes):
                continue
            holder = KeyHolder(d["_id"], bytes(d["digest"]), documents.key_subject(d))
            if holder.subject is not None:
                of_subjects[holder.subject, d["subject_key"]["key"]] = holder
            if (key := d.get("idempotency_key", d.get("key"))) is not None:
                of_users[d["user"], key] = holder
        return [_find_holder(lookup, of_subjects, of_users) for lookup in lookups]

    async def is_permanently_taken_by_another(self, order: Order, field: str) -> bool:
        """Return whether another order has the order's key in the field for another subject or user, and will keep it.

        If so, our order has to be stored without the field. Return False while the other order is undecided. If it were
        rejected later, the field would be free although our order exists, and an instance that knows only this field
        would place our order again.
        """
        where: documents.Document = {field: order.idempotency_key}
        if field == "idempotency_key":
            where |= {"user": order.user, "digest": {"$exists": True}}
        found = await self._collection.find(where, {"user": 1, "status": 1, "subject_key": 1, "digest": 1})
        return any(d["status"] in KEY_HOLDING_STATUSES and not _has_same_owner(order, d) for d in found)


def _find_holder(lookup: KeyLookup, of_subjects: _Holders, of_users: _Holders) -> KeyHolder | None:
    """Return the order that has the key, by the rules of `_has_same_owner`."""
    of_user = of_users.get((lookup.user, lookup.key))
    if lookup.subject is None:
        return of_user
    if own := of_subjects.get((lookup.subject, lookup.key)):
        return own
    before_sign_in = of_users.get((lookup.subject, lookup.key))
    if before_sign_in is not None and before_sign_in.subject is None:
        return before_sign_in
    if of_user is not None and of_user.subject is None and of_user.digest == lookup.digest:
        return of_user
    return None


def _has_same_owner(order: Order, holder: documents.Document) -> bool:
    """Return whether the key in the stored document `holder` belongs to the same subject or user as the new order's."""
    if order.key_subject is None:
        return bool(holder["user"] == order.user)
    if (subject := documents.key_subject(holder)) is not None:
        return subject == order.key_subject
    # It is unknown who placed the stored order.
    same_request = holder["user"] == order.user and holder.get("digest") == order.digest
    return holder["user"] == order.key_subject or same_request
