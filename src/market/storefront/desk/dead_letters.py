"""The mails that could not be sent: dead letters of notifications, which operators replay or drop."""

from __future__ import annotations

import time
from itertools import zip_longest

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from market.contracts.access import OPERATE, SEE_DEAD_LETTERS
from market.kit.errors import BadInput, Forbidden, NotFound, Unavailable
from market.kit.text import parse_uuid
from market.storefront.desk.sections import Section, may
from market.storefront.domain import DeadLetterResult, RequestRefused
from market.storefront.pages.addresses import address
from market.storefront.pages.visit import Visit
from market.storefront.texts.languages import N_

_PATH = "/desk/dead-letters"
# Also the maximum number of dead letters per form.
PAGE_SIZE = 20
# The deadline of all replays of a request, and the time that a replay needs at least.
_SECONDS, _MIN_SECONDS = 10.0, 1.0

REASONS = {
    "rejected": N_("The mail server has refused the mail."),
    "retries-exhausted": N_(
        "All attempts have failed: the mail server has put the mail off, or an internal error has prevented it."
    ),
    "invalid-event": N_("The shop could not read the event that the mail is about."),
}
MAILS = {"created": N_("Order confirmed"), "cancelled": N_("Order cancelled")}
_RESULTS = {
    "mailed": N_("The mail was sent."),
    "mailed-before": N_("The mail had been sent before. It was not sent again."),
    "not-needed": N_("No mail is needed."),
    "dropped": N_("Dropped. No mail is sent."),
    "already-replayed": N_("It had been replayed before. No mail was sent now."),
    "already-dropped": N_("It had been dropped before. No mail was sent."),
}
_STILL_OPEN = {
    "rejected": N_("The mail server has refused the mail again."),
    "deferred": N_("The mail server has put the mail off. Try again later."),
    "mail-server-unavailable": N_("The mail server is not available. Try again later."),
    "no-reply": N_("The mail server has not replied in time. It may have the mail nevertheless."),
    "invalid-event": REASONS["invalid-event"],
    "internal-error": N_("An internal error has prevented it."),
    "unreadable": N_("The event is no longer stored."),
    "attempt-in-progress": N_("Somebody else is replaying or dropping it at the moment."),
    "gone": N_("It is no longer stored."),
    "unknown": N_("The result is not known. Try again: a mail that was sent is not sent again."),
    "not-tried": N_("There was no time left for it. Try again."),
}
_OTHER_REASON = N_("It could not be mailed.")


class Outcome(Struct, frozen=True):
    """The result of replaying or dropping a dead letter.

    text: in English, translated by the template
    is_done: whether the dead letter is no longer open
    order_id: "" if it is unknown
    """

    letter_id: str
    text: str
    detail: str
    is_done: bool
    order_id: str = ""


async def list_dead_letters(visit: Visit) -> Response:
    """Show a page of the open dead letters."""
    after = visit.query("after")
    page = await visit.deps.notifications.list_dead_letters(limit=PAGE_SIZE, after=after or None)
    return visit.page(
        "desk/dead_letters.html",
        page=page,
        reasons=REASONS,
        other_reason=_OTHER_REASON,
        mails=MAILS,
        may_resolve=may(visit, OPERATE),
        next_path=None if page.next is None else address(_PATH, {"after": page.next}),
        first_path=_PATH if after else None,
    )


async def resolve_dead_letters(visit: Visit) -> Response:
    """Replay or drop dead letters one after another, and show the result of each.

    If the form is sent again, by a reload for example, no mail is sent twice.
    """
    if not may(visit, OPERATE):
        raise Forbidden("only operators may replay or drop dead letters")
    action, letter_ids = visit.value("action"), visit.values("letter")
    if action not in ("replay", "drop"):
        raise BadInput("action", "must be replay or drop")
    if not letter_ids or len(letter_ids) > PAGE_SIZE:
        raise BadInput("letter", f"must be present 1 to {PAGE_SIZE} times")
    # The orders are only shown, next to the results. Forms of older versions do not contain them.
    orders = [str(parse_uuid("order", text)) if text else "" for text in visit.values("order")[: len(letter_ids)]]
    outcomes: list[Outcome] = []
    ends_at = time.monotonic() + _SECONDS
    for letter_id, order_id in zip_longest(letter_ids, orders, fillvalue=""):
        seconds = ends_at - time.monotonic()
        outcome = await _resolve(visit, letter_id, action, seconds)
        outcomes.append(replace(outcome, order_id=order_id))
    return visit.page("desk/dead_letters_resolved.html", outcomes=outcomes)


async def _resolve(visit: Visit, letter_id: str, action: str, seconds: float) -> Outcome:
    if seconds < _MIN_SECONDS:
        return _open(letter_id, "not-tried")
    try:
        result = await visit.deps.notifications.resolve(letter_id, action, timeout_seconds=seconds)
    except NotFound:
        return _open(letter_id, "gone")
    except RequestRefused as e:
        return _open(letter_id, e.refusal)
    except Unavailable:
        return _open(letter_id, "unknown")
    return _outcome(result)


def _outcome(result: DeadLetterResult) -> Outcome:
    if (text := _RESULTS.get(result.result)) is not None:
        return Outcome(result.id, text, "", is_done=True)
    return _open(result.id, result.reason or "", result.detail or "")


def _open(letter_id: str, reason: str, detail: str = "") -> Outcome:
    return Outcome(letter_id, _STILL_OPEN.get(reason, _OTHER_REASON), detail, is_done=False)


SECTIONS = (
    Section(
        path=_PATH,
        title=N_("Unsent mails"),
        explanation=N_("Mails that could not be sent, with the reason. Operators can try again."),
        access=SEE_DEAD_LETTERS,
        routes={f"GET {_PATH}": list_dead_letters, f"POST {_PATH}": resolve_dead_letters},
        slow=frozenset({f"GET {_PATH}", f"POST {_PATH}"}),
    ),
)
