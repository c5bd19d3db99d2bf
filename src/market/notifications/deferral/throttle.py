"""Limits delivery attempts to domains whose mails are deferred."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from market.kit.process import logs
from market.notifications import metrics

log = logs.get_logger("mailing")

_MAX_DOMAINS = 10_000


@dataclass(slots=True)
class _DeferringDomain:
    """A domain whose last mail was deferred.

    mails: the ids of the different mails that were deferred in a row, at most as many as throttle the domain
    next_attempt_at: when the next attempt may be made, in seconds of the throttle's clock
    """

    mails: set[str] = field(default_factory=set)
    next_attempt_at: float = 0.0


class DomainThrottle:
    """Counts the mails that each domain defers in a row. Up to 10,000 domains are remembered, the latest ones.

    A mail that is deferred several times counts once: its mailbox may be full while the domain accepts other mails.

    threshold: after this many different mails in a row were deferred, the domain is throttled until it accepts a mail
    attempts_per_second: the maximum rate of delivery attempts to a throttled domain
    clock: returns seconds, like time.monotonic
    """

    def __init__(
        self, threshold: int, attempts_per_second: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._threshold = threshold
        self._interval_seconds = 1 / attempts_per_second
        self._clock = clock
        self._domains: OrderedDict[str, _DeferringDomain] = OrderedDict()
        self._throttled = 0
        metrics.THROTTLED_DOMAINS.set(0)

    def record_deferred(self, domain: str, mail_id: str) -> None:
        """Record that a mail for the domain was deferred: by the mail server, or because the connection to it broke."""
        state = self._domains.setdefault(domain, _DeferringDomain())
        self._domains.move_to_end(domain)
        if not self._is_throttled(state):
            state.mails.add(mail_id)
            if self._is_throttled(state):
                log.warning("domain defers mails, limiting attempts", domain=domain)
                self._count_throttled(1)
        if len(self._domains) > _MAX_DOMAINS:
            _, oldest = self._domains.popitem(last=False)
            self._count_throttled(-int(self._is_throttled(oldest)))

    def record_accepted(self, domain: str) -> None:
        """Record that the mail server accepted a mail for the domain. The domain is no longer throttled."""
        state = self._domains.pop(domain, None)
        if state is not None and self._is_throttled(state):
            log.info("domain accepts mails again", domain=domain)
            self._count_throttled(-1)

    def is_throttled(self, domain: str) -> bool:
        """Return whether delivery attempts to the domain are limited."""
        state = self._domains.get(domain)
        return state is not None and self._is_throttled(state)

    def reserve(self, domain: str, max_seconds: float) -> float | None:
        """Reserve the next delivery attempt to the domain. Return the seconds until it may be made, 0 for immediately.

        Return None, and reserve nothing, if that is more than `max_seconds`.
        """
        if not self.is_throttled(domain):
            return 0.0
        state, now = self._domains[domain], self._clock()
        attempt_at = max(now, state.next_attempt_at)
        if attempt_at - now > max_seconds:
            return None
        state.next_attempt_at = attempt_at + self._interval_seconds
        return attempt_at - now

    def _is_throttled(self, state: _DeferringDomain) -> bool:
        return len(state.mails) >= self._threshold

    def _count_throttled(self, change: int) -> None:
        self._throttled += change
        metrics.THROTTLED_DOMAINS.set(self._throttled)
