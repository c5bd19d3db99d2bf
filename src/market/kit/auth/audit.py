"""The audit log: who changed shared data, or another caller's data."""

from __future__ import annotations

import logging
from typing import Any

from market.kit.auth.identity import identity
from market.kit.optional_imports import without

with without("rich"):  # As in kit/process/logs.py.
    import structlog

# Entries are written at every `log.level`.
log = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.INFO), component="audit")


def record(action: str, *, target: str, before: Any = None, after: Any = None) -> None:
    """Write one entry: the caller's subject and roles, the action, the target, and the target's state before and after.

    action: a static phrase in the past tense, such as "price changed".
    target: the kind and the id of what was changed, such as "product 0198...".

    The entry also contains the request id, like every line of the log. Neither `before` nor `after` may contain a token
    or a password.
    """
    who = identity.get()
    log.info(
        action,
        subject=who.subject,
        roles=sorted(role.value for role in who.roles) if who.signed_in else [],
        target=target,
        before=before,
        after=after,
    )
