"""An OpenID issuer on loopback: it signs any token that a test wants, and serves its keys well or badly.

Tokens are signed with `cryptography` alone, so that nothing is shared with the library that verifies them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast
from urllib.parse import parse_qs, unquote
from uuid import uuid4

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.support.ports import free_port

# Whether tokens come from a real Keycloak (`make test-keycloak`).
ON_KEYCLOAK = bool(os.environ.get("MARKET_KEYCLOAK"))
AUDIENCE = "market"
# Tokens live this long unless a test says otherwise.
LIFETIME_SECONDS = 600

DISCOVERY = "/.well-known/openid-configuration"
JWKS = "/keys"
TOKEN = "/token"
# The media type of the keys (RFC 7517, section 8.5.1).
KEY_SET = "application/jwk-set+json"
# Where the fault REDIRECT leads. It serves keys that a client must not trust.
ELSEWHERE = "/elsewhere"


class Fault(StrEnum):
    """How the issuer serves its discovery document, its keys and its tokens while it is faulty."""

    # One byte every 0.1 s, without end.
    SLOW = "slow"
    # Valid JSON that does not end before a gigabyte.
    HUGE = "huge"
    # A page of HTML, with status 200.
    GARBAGE = "garbage"
    # Valid JSON of other types than the documents have.
    WRONG_TYPES = "wrong types"
    REDIRECT = "redirect"
    ERROR = "error"


# Status, body (JSON, or bytes) and headers.
Response = tuple[int, Any, dict[str, str]]


class SigningKey:
    """A key pair. `jwk` is its public key as the issuer publishes it."""

    def __init__(self, algorithm: str = "ES256", kid: str | None = None) -> None:
        self.kid = kid or secrets.token_hex(8)
        self.algorithm = algorithm
        self._private = _PRIVATE_KEYS[algorithm[:2]]()

    @property
    def public_pem(self) -> bytes:
        """The public key, as an attacker would use it as the secret of an HMAC."""
        return self.public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    @property
    def public_key(self) -> Any:
        return self._private.public_key()

    @property
    def jwk(self) -> dict[str, str]:
        return {"kid": self.kid, "use": "sig", "alg": self.algorithm, **self._parameters()}

    def _parameters(self) -> dict[str, str]:
        public = self.public_key
        if isinstance(public, rsa.RSAPublicKey):
            numbers = public.public_numbers()
            return {"kty": "RSA", "n": _encode(_bytes(numbers.n)), "e": _encode(_bytes(numbers.e))}
        if isinstance(public, ec.EllipticCurvePublicKey):
            point = public.public_numbers()
            return {"kty": "EC", "crv": "P-256", "x": _encode(_bytes(point.x, 32)), "y": _encode(_bytes(point.y, 32))}
        return {"kty": "OKP", "crv": "Ed25519", "x": _encode(public.public_bytes_raw())}

    def sign(self, data: bytes) -> bytes:
        """Return the signature of the JWS signing input (RFC 7515)."""
        if isinstance(self._private, rsa.RSAPrivateKey):
            digest = hashes.SHA256()
            pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
            return self._private.sign(data, pss if self.algorithm == "PS256" else padding.PKCS1v15(), digest)
        if isinstance(self._private, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self._private.sign(data, ec.ECDSA(hashes.SHA256())))
            return _bytes(r, 32) + _bytes(s, 32)
        return self._private.sign(data)


_PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
_PRIVATE_KEYS: dict[str, Callable[[], _PrivateKey]] = {
    "RS": lambda: rsa.generate_private_key(65537, 2048),
    "PS": lambda: rsa.generate_private_key(65537, 2048),
    "ES": lambda: ec.generate_private_key(ec.SECP256R1()),
    "Ed": ed25519.Ed25519PrivateKey.generate,
}


@dataclass
class Client:
    """A client that gets tokens by its credentials; `claims` are those of its tokens."""

    secret: str
    claims: Mapping[str, Any] = field(default_factory=dict)


class Issuer:
    """The issuer. `fault` may be set at any time; `requests` counts the requests by path.

    keys: the published keys. The first signs, unless a token names another.
    clients: by id, for the token endpoint.
    url: by default on loopback.
    """

    def __init__(self, port: int | None = None, url: str | None = None) -> None:
        self.port = port or free_port()
        self.url = url or f"http://127.0.0.1:{self.port}"
        self.keys = [SigningKey("ES256"), SigningKey("RS256"), SigningKey("PS256"), SigningKey("EdDSA")]
        self.clients: dict[str, Client] = {}
        self.fault: Fault | None = None
        self.requests: Counter[str] = Counter()
        # The `expires_in` of tokens for client credentials. The tokens themselves do not change.
        self.expires_in: float = LIFETIME_SECONDS
        # What a service's section `auth` needs to read the tokens of this issuer, beside its URL.
        self.configuration: dict[str, Any] = {}
        # Sent with every response.
        self.headers: dict[str, str] = {}
        # The bytes that the fault HUGE has sent in the largest response.
        self.max_sent_bytes = 0
        # Every token that was made or handed out, to look for them in logs.
        self.issued: list[str] = []
        self._server: asyncio.Server | None = None

    @property
    def signing_key(self) -> SigningKey:
        return self.keys[0]

    def rotate(self, algorithm: str = "ES256", *, keep: bool = True) -> SigningKey:
        """Sign with a new key from now on, and return it. With `keep`, the old keys are still published."""
        new = SigningKey(algorithm)
        self.keys = [new, *(self.keys if keep else ())]
        return new

    def token(
        self,
        subject: str | None = "ann",
        *,
        roles: Iterable[str] | Any = (),
        email: str | None = None,
        audience: Any = AUDIENCE,
        issuer: str | None = None,
        expires_in: float = LIFETIME_SECONDS,
        not_before: float | None = None,
        key: SigningKey | None = None,
        kid: str | None = None,
        algorithm: str | None = None,
        typ: str | None = "at+jwt",
        **claims: Any,
    ) -> str:
        """Return a signed token.

        email: a verified address. expires_in, not_before: seconds from now. key, kid, algorithm: by default those of
        the signing key; "none" leaves the signature out, HS256 uses the public key as the secret. claims: replace those
        made of the other arguments; None removes one.
        """
        key = key or self.signing_key
        now = time.time()
        made: dict[str, Any] = {
            "iss": issuer or self.url,
            "sub": subject,
            "aud": audience,
            "iat": int(now),
            "exp": int(now + expires_in),
            "nbf": None if not_before is None else int(now + not_before),
            "jti": uuid4().hex,
            "client_id": "test",
            "roles": list(roles) if isinstance(roles, list | tuple | set | frozenset) else roles,
            "email": email,
            "email_verified": True if email else None,
            **claims,
        }
        payload = {name: value for name, value in made.items() if value is not None}
        header = {"alg": algorithm or key.algorithm, "kid": kid or key.kid, "typ": typ}
        token = sign({name: value for name, value in header.items() if value is not None}, payload, key)
        self.issued.append(token)
        return token

    async def start(self, host: str = "127.0.0.1") -> None:
        self._server = await asyncio.start_server(self._handle, host, self.port)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self._server = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Issuer]:
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Refuse connections within the block."""
        await self.stop()
        try:
            yield
        finally:
            await self.start()

    @asynccontextmanager
    async def faulty(self, fault: Fault) -> AsyncIterator[None]:
        """Respond with the fault within the block."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ValueError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, target, _ = head.split("\r\n", 1)[0].split(" ")
            headers = dict(_header(line) for line in head.split("\r\n")[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            path = target.split("?")[0]
            self.requests[path] += 1
            if self.fault is not None and path != ELSEWHERE:
                await self._misbehave(self.fault, writer)
            else:
                status, answer, more = self.response(method, target, headers, body)
                self._respond(writer, status, answer, **more)
            await writer.drain()
        writer.close()

    def response(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Return the response to a request while there is no fault; `target` is its path with the query."""
        return *self._response(method, target.split("?")[0], headers, body), {}

    def _response(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        if path == DISCOVERY:
            return 200, {
                "issuer": self.url,
                "jwks_uri": self.url + JWKS,
                "token_endpoint": self.url + TOKEN,
                "authorization_endpoint": f"{self.url}/authorize",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256", "RS256"],
            }
        if path == JWKS:
            # As Kubernetes' API server does.
            accepted = headers.get("accept", "*/*")
            if KEY_SET not in accepted and "*/*" not in accepted:
                return 406, {"error": f"the keys are {KEY_SET}"}
            return 200, {"keys": [key.jwk for key in self.keys]}
        if path == ELSEWHERE:
            return 200, {"issuer": self.url, "jwks_uri": self.url + ELSEWHERE, "keys": [SigningKey().jwk]}
        if path == TOKEN and method == "POST":
            return self._token_response(headers, body)
        return 404, {"error": "not_found"}

    def _token_response(self, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        """Respond to a request for a token by client credentials (RFC 6749, section 4.4)."""
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        client_id, secret = form.get("client_id", ""), form.get("client_secret", "")
        if headers.get("authorization", "").startswith("Basic "):
            credentials = base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode()
            client_id, secret = map(unquote, credentials.split(":", 1))
        client = self.clients.get(client_id)
        if client is None or not hmac.compare_digest(client.secret, secret):
            return 401, {"error": "invalid_client"}
        if form.get("grant_type") != "client_credentials":
            return 400, {"error": "unsupported_grant_type"}
        token = self.token(**cast(Any, {"subject": client_id, "client_id": client_id, **client.claims}))
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": self.expires_in}

    async def _misbehave(self, fault: Fault, writer: asyncio.StreamWriter) -> None:
        if fault is Fault.GARBAGE:
            self._respond(writer, 200, b"<!doctype html><title>Down for maintenance</title>")
        elif fault is Fault.WRONG_TYPES:
            self._respond(writer, 200, {"issuer": self.url, "jwks_uri": 7, "keys": {"kid": []}, "access_token": [1]})
        elif fault is Fault.REDIRECT:
            self._respond(writer, 302, b"", location=self.url + ELSEWHERE)
        elif fault is Fault.ERROR:
            self._respond(writer, 500, {"error": "server_error"})
        elif fault is Fault.SLOW:
            writer.write(self._head(200))
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.1)
        else:
            writer.write(self._head(200) + b'{"keys": [],"padding": "')
            sent = 0
            while sent < 1 << 30 and not writer.is_closing():
                writer.write(bytes(65536).replace(b"\0", b"x"))
                await writer.drain()
                sent += 65536
                self.max_sent_bytes = max(self.max_sent_bytes, sent)

    def _respond(self, writer: asyncio.StreamWriter, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(self._head(status, **{"Content-Length": str(len(data)), **headers}) + data)

    def _head(self, status: int, **headers: str) -> bytes:
        all_headers = {"Content-Type": "application/json", "Connection": "close", **self.headers, **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
        return f"HTTP/1.1 {status} Status\r\n{lines}\r\n".encode()


def sign(header: Mapping[str, Any], payload: Any, key: SigningKey) -> str:
    """Return a compact JWS with exactly this header and payload."""
    signed = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(payload).encode())}"
    if header.get("alg") == "none":
        return f"{signed}."
    if header.get("alg") == "HS256":
        return f"{signed}.{_encode(hmac.digest(key.public_pem, signed.encode(), hashlib.sha256))}"
    return f"{signed}.{_encode(key.sign(signed.encode()))}"


def _header(line: str) -> tuple[str, str]:
    name, value = line.split(":", 1)
    return name.lower(), value.strip()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(number: int, length: int | None = None) -> bytes:
    return number.to_bytes(length or (number.bit_length() + 7) // 8, "big")
