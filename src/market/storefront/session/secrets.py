"""The secrets of the cookies, read from a file."""

from __future__ import annotations

from pathlib import Path

from market.kit.config import ConfigError

MIN_CHARACTERS = 32
_MAX_SECRETS = 10
_MAX_FILE_BYTES = 16_384


def read_secrets(path: str) -> tuple[str, ...]:
    """Return the secrets in the file, one per line: the first one signs and encrypts. Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1).decode("ascii")
    except (OSError, ValueError) as e:
        raise ConfigError(f"cookies.secrets_file: {path} cannot be read: {type(e).__name__}") from None
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(text) > _MAX_FILE_BYTES or not 1 <= len(found) <= _MAX_SECRETS:
        raise ConfigError(f"cookies.secrets_file: {path} must have 1 to {_MAX_SECRETS} lines with a secret each")
    if any(len(secret) < MIN_CHARACTERS for secret in found):
        raise ConfigError(f"cookies.secrets_file: each secret in {path} must have at least {MIN_CHARACTERS} characters")
    return found
