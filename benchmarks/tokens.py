"""`python -m benchmarks.tokens`: the CPU time for verifying a token, with joserfc, PyJWT and Authlib.

Each verifies the signature with a key that is loaded already, and then issuer, audience and expiry. `ours` is
market.kit.auth: joserfc with everything around it, for a token that is seen for the first time, and for one that is
cached. PyJWT and Authlib are measured if they are installed (requirements/bench.lock). Prints a table in Markdown.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from joserfc import jws, jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from market.kit.auth.authenticator import Authenticator
from market.kit.auth.config import Auth
from market.kit.auth.issuer import SigningKey
from market.kit.auth.keys import Keys
from market.kit.auth.token_cache import TokenCache
from market.kit.auth.verifier import Verifier

ISSUER = "https://id.example.com/realms/market"
ROUNDS, CALLS = 7, 400
KEYS: dict[str, Callable[[], Any]] = {
    "RS256": lambda: RSAKey.generate_key(2048, {"kid": "a"}),
    "ES256": lambda: ECKey.generate_key("P-256", {"kid": "a"}),
    "Ed25519": lambda: OKPKey.generate_key("Ed25519", {"kid": "a"}),
}


def claims() -> dict[str, Any]:
    """Return what Keycloak puts into an access token, more or less."""
    now = int(time.time())
    return {
        "iss": ISSUER,
        "sub": "0198f3c0-1111-7000-8000-000000000001",
        "aud": ["market", "account"],
        "exp": now + 3600,
        "iat": now,
        "jti": "8a5f2d4e-6f0e-4f59-9b55-5f1c6e8f5a10",
        "azp": "shop-web",
        "realm_access": {"roles": ["offline_access", "uma_authorization", "merchant"]},
        "scope": "openid email profile",
        "email": "ann@example.com",
        "email_verified": True,
        "name": "Ann Example",
    }


def microseconds(call: Callable[[], Any]) -> float:
    """Return the CPU time of one call, in the fastest of several rounds."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(CALLS):
            call()
        rounds.append((time.process_time() - started) / CALLS * 1e6)
    return min(rounds)


def verifiers(algorithm: str, key: Any, token: str) -> dict[str, Callable[[], Any]]:
    """Return what is measured, by name. Each call verifies the token, and raises if it is not valid."""
    public: Any = key.import_key(key.as_dict(private=False))
    registry = jws.JWSRegistry(algorithms=[algorithm])
    rules = {
        "iss": {"essential": True, "value": ISSUER},
        "aud": {"essential": True, "value": "market"},
        "exp": {"essential": True},
    }

    def with_joserfc() -> None:
        jwt.JWTClaimsRegistry(leeway=30, **rules).validate(jwt.decode(token, public, registry=registry).claims)

    config = Auth(mode="required", issuer=ISSUER, roles_claim="realm_access.roles", algorithms=(algorithm,))
    keys = loaded_keys(public)
    first = Authenticator(Verifier(config, keys, {}), TokenCache(0, 0))
    cached = Authenticator(Verifier(config, keys, {}), TokenCache(10, 100_000))
    measured: dict[str, Callable[[], Any]] = {
        "joserfc": with_joserfc,
        "ours, first time": lambda: run(first.authenticate(token)),
        "ours, cached": lambda: run(cached.authenticate(token)),
    }
    if find_spec("jwt"):
        import jwt as pyjwt

        name = "EdDSA" if algorithm == "Ed25519" else algorithm
        text = pyjwt.encode(claims(), key.private_key, algorithm=name, headers={"kid": "a"})
        options: Any = {"algorithms": [name], "audience": "market", "issuer": ISSUER, "leeway": 30}
        measured["PyJWT"] = lambda: pyjwt.decode(text, public.public_key, **options)
    if find_spec("authlib") and algorithm != "Ed25519":
        from authlib.jose import JsonWebKey, JsonWebToken

        reader, old_key = JsonWebToken([algorithm]), JsonWebKey.import_key(key.as_dict(private=False))
        measured["Authlib"] = lambda: reader.decode(token, old_key, claims_options=rules).validate(leeway=30)
    return measured


def loaded_keys(public: Any) -> Keys:
    """Return the keys of an issuer that has one."""

    async def fetch() -> list[SigningKey]:
        return [SigningKey("a", public.thumbprint(), public)]

    keys = Keys(fetch, on_removed=lambda _: None, refresh_seconds=300, min_refetch_seconds=2)
    asyncio.run(keys.refresh())
    return keys


def run(coroutine: Any) -> Any:
    """Run a coroutine that waits for nothing, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as e:
        return e.value
    raise RuntimeError("the keys are not loaded")


def main() -> None:
    warnings.simplefilter("ignore")
    results = {}
    for algorithm, make in KEYS.items():
        key = make()
        token = jwt.encode({"alg": algorithm, "kid": "a", "typ": "JWT"}, claims(), key, algorithms=[algorithm])
        results[algorithm] = {name: microseconds(call) for name, call in verifiers(algorithm, key, token).items()}
    names = list(dict.fromkeys(name for measured in results.values() for name in measured))
    print("| CPU in µs per token |", " | ".join(results), "|")
    print("|---|" + "---|" * len(results))
    for name in names:
        values = (f"{measured[name]:.0f}" if name in measured else "-" for measured in results.values())
        print(f"| {name} |", " | ".join(values), "|")


if __name__ == "__main__":
    main()
