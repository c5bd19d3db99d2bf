"""Search for token material in everything that a shop writes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tests.authorization.shop import SECRETS, Shop

# The beginning of a JSON object in base64url: the header or the payload of any token, even of one that was cut off.
_JSON_IN_BASE64 = re.compile(r"eyJ[A-Za-z0-9_-]{6,}")
_BASE64 = re.compile(r"[A-Za-z0-9_-]{16,}")


def find_leaks(text: str, tokens: Iterable[str]) -> list[str]:
    """Return each client secret in the text, and each part of a token: whole or cut, of these tokens or others."""
    parts = {part for token in tokens for part in token.split(".")[1:] if len(part) >= 16}
    found = [secret for secret in SECRETS.values() if secret in text]
    found += parts.intersection(_BASE64.findall(text))
    return found + _JSON_IN_BASE64.findall(text)


async def outputs(shop: Shop) -> dict[str, str]:
    """Return everything that the shop has written so far, by where: logs, spans, metrics, stores and mails."""
    written = {f"log of {name}": log for name, log in shop.logs.items()}
    for name, url in shop.admin.items():
        written[f"metrics of {name}"] = (await shop.http.get(f"{url}/metrics")).text
    written["spans"] = b"\n".join(shop.collector.exports).decode("latin-1")
    stored: dict[str, Any] = await shop.stores.everything()
    return {**written, **{f"store {name}": repr(content) for name, content in stored.items()}}


async def assert_nothing_leaked(shop: Shop) -> None:
    """Fail if a token or a client secret, or a part of one, is in anything that the shop has written."""
    leaks = {where: find_leaks(text, shop.issuer.issued) for where, text in (await outputs(shop)).items()}
    assert {where: found[:3] for where, found in leaks.items() if found} == {}
