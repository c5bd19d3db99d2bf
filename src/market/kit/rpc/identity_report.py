"""Reports in the log and in /readyz whether an upstream accepts this service's identity."""

from __future__ import annotations

from market.kit.process import logs
from market.kit.process.health import Health

log = logs.get_logger("auth")


class IdentityReport:
    """Reports refused calls, and the first accepted call after them. A reason is not reported twice in a row.

    A refusal does not make the process unready, because other requests still succeed (docs/decisions/0017).

    upstream: the upstream's name in the log, in /readyz and in the metric of dependencies.
    """

    def __init__(self, health: Health, upstream: str) -> None:
        self._health = health
        self._upstream = upstream
        self._dependency = f"{upstream}-identity"
        self._reason: str | None = None

    def refused(self, reason: str) -> None:
        """Report that the upstream refused a call, or that this service has no token to send."""
        if reason != self._reason:
            log.error("service identity refused", upstream=self._upstream, reason=reason)
            self._health.set_unavailable(self._dependency, reason)
        self._reason = reason

    def accepted(self) -> None:
        """Report that the upstream accepted a call."""
        if self._reason is not None:
            log.info("service identity accepted again", upstream=self._upstream)
            self._health.set_available(self._dependency)
        self._reason = None
