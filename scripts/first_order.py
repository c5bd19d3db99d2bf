"""Place one order in a running shop and wait for its mail.

    python scripts/first_order.py FILE

FILE is written by `market up --json FILE`. Uses the standard library only.
"""

import http.client
import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

TIMEOUT_SECONDS = 120.0
# The outcome is open: the same request is repeated.
RETRYABLE = (502, 503, 504)


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    """Return the JSON response, repeating the request with the same idempotency key while the shop is busy."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": str(uuid.uuid4())} if data else {}
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        try:
            request = urllib.request.Request(url, data, headers)  # noqa: S310
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
                return json.load(response)
        except urllib.error.HTTPError as e:
            with e:
                if e.code not in RETRYABLE or time.monotonic() > deadline:
                    print(f"{url} returned {e.code}: {e.read()[:500].decode('utf-8', 'replace')}", file=sys.stderr)
                    raise
        except (OSError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def main() -> int:
    """Return 0 when the order is confirmed and its mail has arrived."""
    with open(sys.argv[1], encoding="utf-8") as f:
        urls = json.load(f)["urls"]
    product = call(f"{urls['products']}/api/product?limit=1")["items"][0]
    to = "first.order@example.test"
    order = call(
        f"{urls['orders']}/api/order",
        {"user": "first", "email": to, "items": [{"product_id": product["id"], "quantity": 1}]},
    )
    print(f"order {order['id']}: {order['status']}, {order['total']} {order['currency']}")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        mails = call(f"{urls['mail']}/api/messages?to={to}")["items"]
        if mails:
            print(f"mail: {mails[0]['subject']}")
            return 0
        time.sleep(0.2)
    print(f"no mail arrived within {TIMEOUT_SECONDS:.0f} s", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
