"""GraphQL of a shop that requires sign-in, with tokens of a real issuer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.issuer.signed_in_shop import SignedInShop
from tests.support.graphql_examples import run_example, signed_in_examples

# Keycloak builds itself at its first start.
pytestmark = pytest.mark.timeout(900)


async def test_every_example_with_sign_in_gives_the_response_in_the_file(shop: SignedInShop) -> None:
    known: dict[str, Any] = {name: shop.subjects[name] for name in ("ann", "ben")}
    people = set()
    for example in signed_in_examples():
        token = None if example.person is None else shop.people[example.person]
        await run_example(example, known, shop.http, shop.up.urls["graphql"], token)
        people.add(example.person)
    assert people == {None, "ann", "ben", "mia"}
