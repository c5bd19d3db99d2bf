"""Places one order at a running shop, as a customer would, and waits for its mail.

python scripts/first_order.py FILE, where FILE is what `market up --json FILE` wrote.
"""

import json
import sys
import time
import urllib.request
from typing import Any


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        return json.load(response)


def main() -> int:
    """0 when the order was confirmed and its mail has come."""
    with open(sys.argv[1], encoding="utf-8") as f:
        urls = json.load(f)["urls"]
    product = call(f"{urls['products']}/api/product?limit=1")["items"][0]
    to = "first.order@example.test"
    order = call(f"{urls['orders']}/api/order", {"user": "first", "email": to, "items": [{"product_id": product["id"], "quantity": 1}]})
    print(f"order {order['id']}: {order['status']}, {order['total']} {order['currency']}")
    for _ in range(100):
        mails = call(f"{urls['mail']}/api/messages?to={to}")["items"]
        if mails:
            print(f"mail: {mails[0]['subject']}")
            return 0
        time.sleep(0.2)
    print("no mail came within 20 s", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
