"""The OpenAPI document: `python -m market.notifications.openapi [ISSUER]`."""

from __future__ import annotations

import json
import sys
from typing import Any

from market.contracts import access
from market.kit.http.openapi import Operation, document, parameter
from market.kit.paging import MAX_CURSOR_LENGTH
from market.notifications.api import DeadLetterPage, DeadLetterResult

_ID = parameter("id", "path", "The dead letter's id.", {"type": "string", "pattern": "^[0-9]+-[0-9]+$"})
_RETRY_AFTER = {status: {"Retry-After": "Seconds to wait before retrying."} for status in (429, 503)}
_TOO_MANY = (
    "This caller has too many requests in progress, or sends too many per second; nothing was done. Retry after the "
    "number of seconds in Retry-After.",
    None,
)


def build(issuer: str | None = None) -> dict[str, Any]:
    """Return the document as JSON values.

    issuer: the URL of the OpenID Connect issuer. None for the published document, which does not depend on an issuer.
    """
    replay_or_drop: dict[int, tuple[str, Any]] = {
        200: ("The result.", DeadLetterResult),
        404: ("There is no such dead letter.", None),
        409: (
            "Another request, or the command `dead-letters`, is replaying or dropping the dead letter, or was "
            "interrupted while doing so. Nothing was done.",
            None,
        ),
        422: ("A parameter is unknown.", None),
        429: _TOO_MANY,
        503: (
            "Kafka is unavailable, or too many requests are waiting. Retry after the number of seconds in Retry-After. "
            "If the mail has been sent, the retry does not send it again.",
            None,
        ),
    }
    return document(
        "Market: notifications",
        "For operators: the dead letters, which are the events that could not be mailed. Errors are RFC 9457 problem "
        "documents.",
        "http://127.0.0.1:8100",
        [
            Operation(
                "GET",
                "/api/dead-letters",
                "listDeadLetters",
                "List the newest dead letters, the newest first.",
                {
                    200: ("A page of dead letters.", DeadLetterPage),
                    422: ("A parameter is unknown or out of range.", None),
                    429: _TOO_MANY,
                    503: (
                        "Kafka is unavailable, or too many requests are waiting. Retry after the number of seconds in "
                        "Retry-After.",
                        None,
                    ),
                },
                [
                    parameter(
                        "limit",
                        "query",
                        "Maximum number of dead letters to return.",
                        {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                    ),
                    parameter(
                        "after",
                        "query",
                        "The `next` of the previous page. `status` must be the same as for that page.",
                        {"type": "string", "minLength": 1, "maxLength": MAX_CURSOR_LENGTH},
                    ),
                    parameter(
                        "status",
                        "query",
                        "Only dead letters with this status.",
                        {"type": "string", "enum": ["open", "replayed", "dropped"]},
                    ),
                ],
                headers=_RETRY_AFTER,
            ),
            Operation(
                "POST",
                "/api/dead-letters/{id}/replay",
                "replayDeadLetter",
                "Send the mail of a dead letter now. Repeating the request does not send it again.",
                replay_or_drop,
                [_ID],
                headers=_RETRY_AFTER,
            ),
            Operation(
                "POST",
                "/api/dead-letters/{id}/drop",
                "dropDeadLetter",
                "Mark a dead letter as done without sending its mail.",
                replay_or_drop,
                [_ID],
                headers=_RETRY_AFTER,
            ),
        ],
        access=access.NOTIFICATIONS,
        issuer=issuer,
    )


if __name__ == "__main__":
    print(json.dumps(build(*sys.argv[1:2]), indent=2, ensure_ascii=False))
