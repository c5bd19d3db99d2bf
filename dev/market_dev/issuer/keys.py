"""The key that signs the tokens, kept in a file, so that tokens stay valid when the provider is restarted."""

from __future__ import annotations

from pathlib import Path

import msgspec
from joserfc.jwk import KeyParameters, KeySet, RSAKey

from market_dev.stack.files import write_text

ALGORITHM = "RS256"
_KEY_BITS = 2048


def load_or_create(directory: Path) -> KeySet:
    """Return the key set in the directory, created at the first start. Only the file's owner can read it."""
    path = directory / "keys.json"
    if path.exists():
        return KeySet.import_key_set(msgspec.json.decode(path.read_bytes()))
    parameters: KeyParameters = {"alg": ALGORITHM, "use": "sig"}
    keys = KeySet([RSAKey.generate_key(_KEY_BITS, parameters, private=True, auto_kid=True)])
    write_text(path, msgspec.json.encode(keys.as_dict(private=True)).decode(), mode=0o600)
    return keys
