"""Who owns an order, who may place it for whom, and where its mails go.

market.contracts.access says which callers may only access their own orders (OWN). An order is the caller's own if its
user is the subject of the caller's token. In mode `open`, nobody signs in, everything is permitted, and a request to
place an order has to name the user.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from market.contracts.access import PLACE_ORDERS, READ_ORDERS
from market.kit.auth import audit
from market.kit.auth.identity import ANONYMOUS, Identity, identity, token
from market.kit.auth.permissions import Access, Permission
from market.kit.errors import BadInput, Forbidden
from market.kit.mail_address import parse_mail_address
from market.orders.domain import NewOrder, Order, Status
from market.orders.idempotency.keys import KeyLookup


class Attribution(Struct, frozen=True):
    """Who an order is for, and who places it.

    request: the request, with `user` filled in if it was absent. `email` is as in the request, so that the digest does
        not depend on the address in the token
    user: the user that the order is for
    email: the address for its mails, or None
    subject: the signed-in caller who places the order, and to whom its idempotency key belongs. None in mode `open`
    """

    request: NewOrder
    user: str
    email: str | None
    subject: str | None

    @property
    def placed_by(self) -> str | None:
        """The subject that places the order, if that is not the user."""
        return None if self.subject == self.user else self.subject

    @property
    def without_mail(self) -> bool:
        """True if no mail is sent: the caller orders for themselves, and there is no e-mail address.

        The subject is not used as an address, even if it looks like one, because the issuer has not verified it as one.
        """
        return self.email is None and self.subject == self.user

    def key_lookup(self, idempotency_key: str | None) -> KeyLookup | None:
        """Return the lookup of the order that has the idempotency key, or None if there is no key."""
        if idempotency_key is None:
            return None
        return KeyLookup(self.user, idempotency_key, self.subject, self.request.digest())


def attribute_order(new: NewOrder) -> Attribution:
    """Return who the order is for, and where its mails go.

    If the request names no user, the order is for the caller. If an order for the caller names no `email`, its mails go
    to the address that the issuer has verified, if there is one.

    Raises Forbidden if the caller may not place orders. Also raises it if the caller may place orders only for
    themselves, and the request names another user, or an address other than the verified one.
    Raises BadInput if a merchant orders for another user without an `email`, and that user's name contains @ but is not
    an e-mail address.
    """
    caller = identity.get()
    for_anybody = PLACE_ORDERS.require(caller) is Permission.YES
    if not caller.signed_in:
        assert new.user is not None, "the edge requires a user in mode open"
        return Attribution(new, new.user, new.email, None)
    user = caller.subject if new.user is None else new.user
    if user != caller.subject and not for_anybody:
        raise Forbidden(
            "`user` must be absent, or the subject of the token: only merchants may place orders for others",
            role_is_missing=True,
        )
    email = new.email
    if user == caller.subject and email is None:
        email = _verified_address(caller)
    elif not for_anybody and not _same_address(email, _verified_address(caller)):
        raise Forbidden(
            "`email` must be absent, or the verified address in the token: only merchants may name another one",
            role_is_missing=True,
        )
    elif user != caller.subject:
        check_recipient(user, email)
    return Attribution(msgspec.structs.replace(new, user=user), user, email, caller.subject)


def check_recipient(user: str, email: str | None) -> None:
    """Raise BadInput if there is no `email`, and the user's name contains @ but is not an e-mail address.

    Without an `email`, mails go to the user's name, if that is an address. A name with @ that is no address is probably
    a typing error, and the customer would get no mails.
    """
    if email is None and "@" in user and parse_mail_address(user) is None:
        raise BadInput("user", "must be an e-mail address if it contains @ and there is no `email`")


def _verified_address(caller: Identity) -> str | None:
    """Return the caller's verified address. Return None if there is none, or if it is not a valid address."""
    return caller.email if caller.email is not None and parse_mail_address(caller.email) is not None else None


def _same_address(one: str | None, other: str | None) -> bool:
    """Return whether both are the same address. The case of the domain does not matter."""
    if one is None or other is None:
        return False
    first, second = parse_mail_address(one), parse_mail_address(other)
    if first is None or second is None:
        return False
    return (first.local_part, first.domain.lower()) == (second.local_part, second.domain.lower())


def required_owner(access: Access) -> str | None:
    """Return the user that an order must belong to, so that the caller has this access to it. None: any user.

    Raises Unauthenticated or Forbidden if the caller has this access to no order.
    """
    caller = identity.get()
    return None if access.require(caller) is Permission.YES else caller.subject


def listed_user(user: str | None) -> str | None:
    """Return the user whose orders are listed, or None for everybody's orders.

    user: what the request names, or None. Raises Forbidden if the caller may not list the orders of that user.
    """
    owner = required_owner(READ_ORDERS)
    if owner is None:
        return user
    if user is None or user == owner:
        return owner
    raise Forbidden(
        "`user` must be absent, or the subject of the token: only merchants and operators may list the orders of "
        "others",
        role_is_missing=True,
    )


def act_as_service() -> None:
    """Make the current task act as the service instead of the caller whose request started it."""
    identity.set(ANONYMOUS)
    token.set("")


def record_placed(order: Order, *, outcome_is_known: bool = True) -> None:
    """Write to the audit log that the caller has placed an order for somebody else. Own orders are not recorded.

    outcome_is_known: False if it is unknown whether the order was confirmed
    """
    if _belongs_to_another(order):
        status = order.status.value if outcome_is_known else "outcome unknown"
        audit.record("order placed", target=f"order {order.id}", after=_state(order, status))


def record_cancelled(order: Order, after: Order | None) -> None:
    """Write to the audit log that the caller has cancelled an order of somebody else.

    Nothing is recorded if the order had been cancelled before, or is not cancelled now.

    order: as it was before
    after: as it is now. None if the outcome is unknown
    """
    if order.status is Status.CANCELLED or (after is not None and after.status is not Status.CANCELLED):
        return
    if _belongs_to_another(order):
        status = "outcome unknown" if after is None else after.status.value
        audit.record(
            "order cancelled",
            target=f"order {order.id}",
            before=_state(order, order.status.value),
            after=_state(order, status),
        )


def _state(order: Order, status: str) -> dict[str, str]:
    return {"user": order.user, "status": status}


def _belongs_to_another(order: Order) -> bool:
    caller = identity.get()
    return caller.signed_in and caller.subject != order.user
